// Heads for training: cut out of one product, normalised and rotated, and their slopes put back into it.
//
// Source for the rotation: Su et al. 2021, arXiv:2104.09864, eq. 34.
#pragma once

#include <algorithm>
#include <vector>

#include "numbers.hpp"

namespace stockpot {

struct AttentionFacts {
  int64_t type;                              // of activations: 0 float, 1 bfloat16
  int64_t angle_type, mask_rows, mask_viewers, angle_rows;  // rows: 1, or one for each of the batch
  int64_t batch, seq, heads, kv_heads, head_dim, rotary_dim;
  int64_t causal, threads;
  float scale, eps;
  const void* qkv;                           // (batch, seq, (heads + 2 kv_heads) * head_dim)
  const float *q_gain, *k_gain;              // (head_dim), or null: heads are not normalised
  const void* angles;                        // (rows, seq, 2 * rotary_dim): cos, then -sin and sin by halves; or null
  const uint8_t* mask;                       // (rows, viewers, seq), 1 = visible; or null
  void *q, *k, *v;                           // (batch, heads or kv_heads, seq, head_dim); q times `scale`; to place only
  void* mixed;                               // (batch, seq, heads * head_dim); null: to place only
  float* log_sums;                           // (batch, heads, seq): log of the sum of e^score
  const void* slope;                         // like mixed
  const void *to_q, *to_k, *to_v;            // like q, k, v; to place only
  void* to_qkv;                              // like qkv
  float *to_q_gain, *to_k_gain;
};

constexpr int64_t LONGEST_HEAD = 1024;       // numbers of a head; training.py has it, too

// One head of a product: queries first, then keys, then values.
struct Head {
  bool is_query, is_value;
  int64_t own;                               // its number among its kind
  float by;                                  // what it is multiplied with
  const float* gain;
  Head(const AttentionFacts& f, int64_t head)
      : is_query(head < f.heads), is_value(head >= f.heads + f.kv_heads),
        own(is_query ? head : is_value ? head - f.heads - f.kv_heads : head - f.heads), by(is_query ? f.scale : 1.0f),
        gain(is_value ? nullptr : is_query ? f.q_gain : f.k_gain) {}
  // Where the head of a position lies among all of its kind.
  int64_t at(const AttentionFacts& f, int64_t item, int64_t position) const {
    return ((item * (is_query ? f.heads : f.kv_heads) + own) * f.seq + position) * f.head_dim;
  }
};

// Where the head of a position lies in the product.
inline int64_t in_product(const AttentionFacts& f, int64_t item, int64_t position, int64_t head) {
  return ((item * f.seq + position) * (f.heads + 2 * f.kv_heads) + head) * f.head_dim;
}

// The angles of a position, or null.
template <class A> const A* angles_of(const AttentionFacts& f, int64_t item, int64_t position) {
  if (!f.angles) return nullptr;
  return static_cast<const A*>(f.angles) + ((f.angle_rows == 1 ? 0 : item) * f.seq + position) * 2 * f.rotary_dim;
}

template <class T> float reciprocal_size(const T* x, int64_t dim, float eps) {
  float square = 0.0f;
#pragma omp simd reduction(+ : square)
  for (int64_t i = 0; i < dim; ++i) square += get(x[i]) * get(x[i]);
  return 1.0f / std::sqrt(square / static_cast<float>(dim) + eps);
}

// Normalises, rotates and scales a head's numbers; null gains and angles leave that out.
template <class T, class A>
void open_head(const T* x, const float* gain, const A* angle, int64_t half, float by, float eps, float* out, int64_t dim) {
  if (gain) {
    by *= reciprocal_size(x, dim, eps);
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) out[i] = get(x[i]) * by * gain[i];
  } else {
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) out[i] = get(x[i]) * by;
  }
  if (!angle) return;
#pragma omp simd
  for (int64_t p = 0; p < half; ++p) {
    const float a = out[p], b = out[p + half];
    out[p] = a * get(angle[p]) + b * get(angle[2 * half + p]);
    out[p + half] = b * get(angle[half + p]) + a * get(angle[3 * half + p]);
  }
}

// The reverse for slopes, which it uses up; adds to the slopes of the gain.
template <class T, class A>
void close_head(float* slope, const T* x, const float* gain, const A* angle, int64_t half, float by, float eps, T* to,
                float* to_gain, int64_t dim) {
  if (angle) {
#pragma omp simd
    for (int64_t p = 0; p < half; ++p) {
      const float a = slope[p], b = slope[p + half];
      slope[p] = a * get(angle[p]) + b * get(angle[3 * half + p]);
      slope[p + half] = b * get(angle[half + p]) + a * get(angle[2 * half + p]);
    }
  }
  if (!gain) {
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) put(to[i], by * slope[i]);
    return;
  }
  const float scale = reciprocal_size(x, dim, eps);
  float along = 0.0f;
#pragma omp simd reduction(+ : along)
  for (int64_t i = 0; i < dim; ++i) along += slope[i] * gain[i] * get(x[i]);
  along *= by * scale * scale / static_cast<float>(dim);
#pragma omp simd
  for (int64_t i = 0; i < dim; ++i) {
    to_gain[i] += by * scale * slope[i] * get(x[i]);
    put(to[i], scale * (by * slope[i] * gain[i] - get(x[i]) * along));
  }
}

// Adds up the slopes of gains that `parts` pieces of the work have found: (parts, 2, head_dim), queries' first.
inline void add_gains(const AttentionFacts& f, const std::vector<float>& sums, int64_t parts) {
  if (!f.q_gain) return;
  const int64_t dim = f.head_dim;
  std::fill(f.to_q_gain, f.to_q_gain + dim, 0.0f);
  std::fill(f.to_k_gain, f.to_k_gain + dim, 0.0f);
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t i = 0; i < dim; ++i) {
      f.to_q_gain[i] += sums[static_cast<size_t>(part * 2 * dim + i)];
      f.to_k_gain[i] += sums[static_cast<size_t>(part * 2 * dim + dim + i)];
    }
}

template <class T, class A> void place_heads(const AttentionFacts& f) {
  const int64_t all = f.heads + 2 * f.kv_heads, dim = f.head_dim, half = f.rotary_dim / 2;
#pragma omp parallel for num_threads(static_cast<int>(f.threads)) schedule(static) if (f.threads > 1)
  for (int64_t token = 0; token < f.batch * f.seq; ++token) {
    const int64_t item = token / f.seq, at = token % f.seq;
    const A* angle = angles_of<A>(f, item, at);
    alignas(64) float buffer[LONGEST_HEAD];
    for (int64_t head = 0; head < all; ++head) {
      const Head own(f, head);
      const T* x = static_cast<const T*>(f.qkv) + in_product(f, item, at, head);
      T* to = static_cast<T*>(own.is_query ? f.q : own.is_value ? f.v : f.k) + own.at(f, item, at);
      if (own.is_value) {
        std::copy(x, x + dim, to);
        continue;
      }
      open_head(x, own.gain, angle, half, own.by, f.eps, buffer, dim);
#pragma omp simd
      for (int64_t i = 0; i < dim; ++i) put(to[i], buffer[i]);
    }
  }
}

template <class T, class A> void place_heads_back(const AttentionFacts& f) {
  const int64_t all = f.heads + 2 * f.kv_heads, dim = f.head_dim, half = f.rotary_dim / 2;
  const int64_t tokens = f.batch * f.seq, parts = std::min(PIECES, tokens);
  std::vector<float> sums(static_cast<size_t>(f.q_gain ? PIECES * 2 * dim : 0), 0.0f);
#pragma omp parallel for num_threads(static_cast<int>(f.threads)) schedule(static) if (f.threads > 1)
  for (int64_t part = 0; part < parts; ++part) {
    alignas(64) float buffer[LONGEST_HEAD];
    for (int64_t token = tokens * part / parts; token < tokens * (part + 1) / parts; ++token) {
      const int64_t item = token / f.seq, at = token % f.seq;
      const A* angle = angles_of<A>(f, item, at);
      for (int64_t head = 0; head < all; ++head) {
        const Head own(f, head);
        const int64_t place = in_product(f, item, at, head);
        const T* from = static_cast<const T*>(own.is_query ? f.to_q : own.is_value ? f.to_v : f.to_k) + own.at(f, item, at);
        T* to = static_cast<T*>(f.to_qkv) + place;
        if (own.is_value) {
          std::copy(from, from + dim, to);
          continue;
        }
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) buffer[i] = get(from[i]);
        float* gains = own.gain ? sums.data() + part * 2 * dim + (own.is_query ? 0 : dim) : nullptr;
        close_head(buffer, static_cast<const T*>(f.qkv) + place, own.gain, angle, half, own.by, f.eps, to, gains, dim);
      }
    }
  }
  add_gains(f, sums, parts);
}

}  // namespace stockpot
