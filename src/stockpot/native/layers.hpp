// What the layers of all kinds of model have in common: norms, rotations, activations. One row or vector at a time.
#pragma once

#include "lanes.hpp"

namespace stockpot {

struct Norm {
  const float* weight;                       // null: this norm does not exist
  const float* bias;                         // or null
  int64_t centred;                           // layer norm: subtract the mean
};

// `out` may be `row`. Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4; centred: Ba et al. 2016, arXiv:1607.06450.
inline void normalise(const Norm& norm, const float* row, float* out, int64_t count, float eps) {
  Lanes total = fill(0.0f);
  float mean = 0.0f;
  if (norm.centred) {
    for (int64_t i = 0; i < count; i += LANES) total = total + load(row + i);
    mean = sum(total) / float(count);
    total = fill(0.0f);
  }
  const Lanes centre = fill(mean);
  for (int64_t i = 0; i < count; i += LANES) {
    const Lanes a = load(row + i) - centre;
    total = fma(a, a, total);
  }
  const Lanes factor = fill(1.0f / std::sqrt(sum(total) / float(count) + eps));
  for (int64_t i = 0; i < count; i += LANES) {
    const Lanes a = (load(row + i) - centre) * factor * load(norm.weight + i);
    store(out + i, norm.bias ? a + load(norm.bias + i) : a);
  }
}

// Rotate pairs (i, i + size / 2) of a head by the angles of its position: cosines twice, then sines with their signs.
// Source: Su et al. 2021, arXiv:2104.09864, eq. 34.
inline void rotate(const float* angles, int64_t size, float* vector) {
  const int64_t half = size / 2;
  const float *cos = angles, *sin = angles + size + half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = vector[i], b = vector[i + half];
    vector[i] = a * cos[i] - b * sin[i];
    vector[i + half] = b * cos[i] + a * sin[i];
  }
}

enum Activation { SILU, GELU, GELU_TANH, RELU, RELU2 };

// x * P(X <= x). Source of the integral: Abramowitz & Stegun 1964, 7.1.26 (error below 1.5e-7).
inline Lanes gelu(Lanes x) {
  const Lanes one = fill(1.0f), zero = fill(0.0f), size = size_of(x);
  const Lanes t = one / fma(fill(0.3275911f * 0.70710678f), size, one);
  Lanes p = fill(1.061405429f);
  for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = fma(p, t, fill(c));
  const Lanes tail = p * t * exponential(fill(-0.5f) * x * x) * fill(0.5f);  // the integral of what is beyond |x|
  return larger(x, zero) - size * tail;
}

inline Lanes activate(int64_t kind, Lanes x) {
  const Lanes zero = fill(0.0f), one = fill(1.0f);
  if (kind == SILU) return x / (one + exponential(zero - x));
  if (kind == GELU) return gelu(x);
  if (kind == RELU) return larger(x, zero);
  if (kind == RELU2) return larger(x, zero) * larger(x, zero);
  const Lanes u = fill(0.7978845608f) * fma(fill(0.044715f) * x * x, x, x);  // x * sigmoid(2 u), as (1 + tanh u) / 2 = sigmoid(2 u)
  return x / (one + exponential(zero - u - u));
}

}  // namespace stockpot
