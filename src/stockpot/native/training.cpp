// What training does between its matrix products on a CPU: one pass over memory for each step of a layer.
//
// torch's chains of small operations read and write the same numbers several times, and in small models calling them
// costs more than the work. Each function here is one such chain, forward or backward. Sums over rows are taken in
// pieces whose number does not depend on the threads, so that neither do the results.
#include <algorithm>
#include <vector>

#include "numbers.hpp"
#include "training_attention.hpp"
#include "training_products.hpp"

namespace stockpot {
namespace {

// Runs `work(piece, first, last)` for each piece of `rows`, on several threads.
template <class Work> void in_pieces(int64_t rows, int threads, Work work) {
  const int64_t pieces = std::min(PIECES, rows);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t piece = 0; piece < pieces; ++piece)
    work(piece, rows * piece / pieces, rows * (piece + 1) / pieces);
}

// Runs `work(which, part, from, to)` for the slices of `count` arrays of `size` numbers each; parts are numbered throughout.
template <class Work> void in_slices(int64_t count, int64_t size, int threads, Work work) {
  in_pieces(count * PIECES, threads, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      const int64_t slice = part % PIECES;
      work(part / PIECES, part, size * slice / PIECES, size * (slice + 1) / PIECES);
    }
  });
}

// Adds up the pieces' sums, each `width` long.
void add_pieces(const std::vector<float>& sums, int64_t pieces, int64_t width, float* out) {
  std::fill(out, out + width, 0.0f);
  for (int64_t piece = 0; piece < pieces; ++piece)
    for (int64_t i = 0; i < width; ++i) out[i] += sums[piece * width + i];
}

// --- norms ---

template <class In, class Out>
void row_norm(const In* x, const float* weight, const float* bias, Out* out, float* to_mean, float* to_scale, int64_t dim,
              float eps) {
  float mean = 0.0f, square = 0.0f;
  if (to_mean) {
#pragma omp simd reduction(+ : mean)
    for (int64_t i = 0; i < dim; ++i) mean += get(x[i]);
    *to_mean = mean /= static_cast<float>(dim);
  }
#pragma omp simd reduction(+ : square)
  for (int64_t i = 0; i < dim; ++i) square += (get(x[i]) - mean) * (get(x[i]) - mean);
  const float scale = *to_scale = 1.0f / std::sqrt(square / static_cast<float>(dim) + eps);
  if (bias) {
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) put(out[i], (get(x[i]) - mean) * scale * weight[i] + bias[i]);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) put(out[i], (get(x[i]) - mean) * scale * weight[i]);
  }
}

template <class In, class Out>
void normalise(const In* x, const float* weight, const float* bias, Out* out, float* means, float* scales,
               int64_t rows, int64_t dim, float eps, int threads) {
  in_pieces(rows, threads, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row)
      row_norm(x + row * dim, weight, bias, out + row * dim, means ? means + row : nullptr, scales + row, dim, eps);
  });
}

template <class In, class Out>
void row_back(const Out* slope, const In* x, const float* weight, float mean, float scale, bool centred, In* to_x,
              float* to_weight, float* to_bias, int64_t dim) {
  float along = 0.0f, level = 0.0f;          // one sum a loop: the compiler leaves two as they are
#pragma omp simd reduction(+ : along)
  for (int64_t i = 0; i < dim; ++i) along += get(slope[i]) * weight[i] * (get(x[i]) - mean);
  along *= scale * scale / static_cast<float>(dim);
  if (centred) {
#pragma omp simd reduction(+ : level)
    for (int64_t i = 0; i < dim; ++i) level += get(slope[i]) * weight[i];
    level /= static_cast<float>(dim);
  }
#pragma omp simd
  for (int64_t i = 0; i < dim; ++i) {
    to_weight[i] += get(slope[i]) * (get(x[i]) - mean) * scale;
    put(to_x[i], scale * (get(slope[i]) * weight[i] - level - along * (get(x[i]) - mean)));
  }
  if (!to_bias) return;
#pragma omp simd
  for (int64_t i = 0; i < dim; ++i) to_bias[i] += get(slope[i]);
}

template <class In, class Out>
void normalise_back(const Out* slope, const In* x, const float* weight, const float* means, const float* scales,
                    In* to_x, float* to_weight, float* to_bias, int64_t rows, int64_t dim, int threads) {
  const int64_t width = to_bias ? 2 * dim : dim;
  std::vector<float> sums(static_cast<size_t>(PIECES * width), 0.0f);
  in_pieces(rows, threads, [&](int64_t piece, int64_t first, int64_t last) {
    float* weights = sums.data() + piece * width;
    for (int64_t row = first; row < last; ++row)
      row_back(slope + row * dim, x + row * dim, weight, means ? means[row] : 0.0f, scales[row], means != nullptr,
               to_x + row * dim, weights, to_bias ? weights + dim : nullptr, dim);
  });
  std::vector<float> total(static_cast<size_t>(width));
  add_pieces(sums, std::min(PIECES, rows), width, total.data());
  std::copy(total.begin(), total.begin() + dim, to_weight);
  if (to_bias) std::copy(total.begin() + dim, total.end(), to_bias);
}

// --- activations ---

inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

template <class T> void row_swiglu(const T* gate, const T* value, T* out, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) put(out[i], get(gate[i]) * sigmoid(get(gate[i])) * get(value[i]));
}

template <class T>
void row_swiglu_back(const T* slope, const T* gate, const T* value, T* to_gate, T* to_value, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const float g = get(gate[i]), share = sigmoid(g), d = get(slope[i]);
    put(to_value[i], d * g * share);
    put(to_gate[i], d * get(value[i]) * share * (1.0f + g * (1.0f - share)));
  }
}

template <class T> void swiglu(const T* both, T* out, int64_t rows, int64_t width, int threads) {
  in_pieces(rows, threads, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row)
      row_swiglu(both + row * 2 * width, both + row * 2 * width + width, out + row * width, width);
  });
}

template <class T>
void swiglu_back(const T* slope, const T* both, T* to_both, int64_t rows, int64_t width, int threads) {
  in_pieces(rows, threads, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t gate = row * 2 * width, value = gate + width;
      row_swiglu_back(slope + row * width, both + gate, both + value, to_both + gate, to_both + value, width);
    }
  });
}

// e^(-x^2 / 2), and the normal distribution's integral up to x, as exactly as numbers of T need it.
//
// Source for floats: Abramowitz & Stegun 1964, 7.1.26 (error below 1.5e-7). What bfloat16 is made of is below 0 that bell times a
// polynomial of ours, to 9e-5 of itself down to -6: no division.
template <class T> inline float bell_at(float x) { return decay<T>(-0.5f * x * x); }

template <class T> inline float normal_integral(float x, float bell) {
  float tail;
  if constexpr (sizeof(T) == sizeof(float)) {
    const float t = 1.0f / (1.0f + 0.3275911f * (std::fabs(x) * 0.70710678f));
    tail = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t * 0.5f;
  } else {
    const float size = std::fabs(x), t = (size < 6.0f ? size : 6.0f) - 3.0f;
    tail = -5.60160288e-7f;
    for (const float next : {3.23431118e-6f, -4.09690620e-6f, 1.11005829e-5f, -1.31093351e-4f, 6.13320095e-4f, -2.31770263e-3f,
                             9.09427926e-3f, -3.43905203e-2f, 1.21524200e-1f})
      tail = tail * t + next;
  }
  tail *= bell;
  return x < 0.0f ? tail : 1.0f - tail;
}

template <class T> void row_gelu(const T* x, T* out, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float v = get(x[i]);
    put(out[i], v * normal_integral<T>(v, bell_at<T>(v)));
  }
}

template <class T> void row_gelu_back(const T* slope, const T* x, T* to_x, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float v = get(x[i]), bell = bell_at<T>(v);
    put(to_x[i], get(slope[i]) * (normal_integral<T>(v, bell) + v * bell * 0.39894228f));
  }
}

template <class T> void gelu(const T* x, T* out, int64_t count, int threads) {
  in_pieces(count, threads, [&](int64_t, int64_t first, int64_t last) { row_gelu(x + first, out + first, last - first); });
}

template <class T> void gelu_back(const T* slope, const T* x, T* to_x, int64_t count, int threads) {
  in_pieces(count, threads, [&](int64_t, int64_t first, int64_t last) {
    row_gelu_back(slope + first, x + first, to_x + first, last - first);
  });
}

// --- cross-entropy ---

struct Verdict { double total = 0.0, nats = 0.0, correct = 0.0; };

template <class T> void judge_row(T* logits, int64_t label, int64_t vocab, float z_loss, bool needs_slope, Verdict& sums) {
  const float wanted = get(logits[label]);
  float top = -INFINITY, sum = 0.0f;
#pragma omp simd reduction(max : top)
  for (int64_t i = 0; i < vocab; ++i) top = std::max(top, get(logits[i]));
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < vocab; ++i) sum += decay<T>(get(logits[i]) - top);
  const double log_z = static_cast<double>(top) + std::log(static_cast<double>(sum)), nats = log_z - wanted;
  int64_t best = 0;                          // the first of the largest
  while (best < vocab && get(logits[best]) != top) ++best;
  sums.total += nats + z_loss * log_z * log_z;
  sums.nats += nats;
  sums.correct += best == label;
  if (!needs_slope) return;
  const float share = static_cast<float>(1.0 + 2.0 * z_loss * log_z) / sum;
#pragma omp simd
  for (int64_t i = 0; i < vocab; ++i) put(logits[i], decay<T>(get(logits[i]) - top) * share);
  put(logits[label], decay<T>(wanted - top) * share - 1.0f);
}

// Judges rows of logits (count, vocab) and leaves the slope of the total in their place; false: a label does not exist.
template <class T>
bool judge(T* logits, const int64_t* labels, int64_t count, int64_t vocab, float z_loss, bool needs_slope, double* sums,
           int threads) {
  for (int64_t row = 0; row < count; ++row)
    if (labels[row] < 0 || labels[row] >= vocab) return false;
  std::vector<Verdict> parts(PIECES);
  in_pieces(count, threads, [&](int64_t piece, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row)
      judge_row(logits + row * vocab, labels[row], vocab, z_loss, needs_slope, parts[static_cast<size_t>(piece)]);
  });
  std::fill(sums, sums + 3, 0.0);
  for (const Verdict& part : parts) {
    sums[0] += part.total;
    sums[1] += part.nats;
    sums[2] += part.correct;
  }
  return true;
}

// --- Muon ---

template <class T> float blend(const float* gradient, float* momentum, T* out, int64_t count, float keep) {
  float square = 0.0f;
  if (gradient) {
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < count; ++i) {
      const float m = momentum[i] + (1.0f - keep) * (gradient[i] - momentum[i]);
      const float g = gradient[i] + keep * (m - gradient[i]);
      momentum[i] = m;
      put(out[i], g);
      square += g * g;
    }
  } else {                                   // no gradient is one of zero
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < count; ++i) {
      momentum[i] *= keep;
      put(out[i], keep * momentum[i]);
      square += keep * momentum[i] * keep * momentum[i];
    }
  }
  return square;
}

template <class T> void resize(T* x, int64_t count, float by) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) put(x[i], get(x[i]) * by);
}

template <class T> void move(float* weight, const T* update, int64_t count, float keep, float step) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) weight[i] = weight[i] * keep - step * get(update[i]);
}

// Momentum in Nesterov's way for `count` matrices of `size` numbers each, then each divided by its Frobenius norm.
template <class T>
void gather(const float* const* gradients, float* momenta, T* out, int64_t count, int64_t size, float keep, float margin,
            int threads) {
  std::vector<double> squares(static_cast<size_t>(count * PIECES), 0.0);
  in_slices(count, size, threads, [&](int64_t which, int64_t part, int64_t from, int64_t to) {
    squares[static_cast<size_t>(part)] = static_cast<double>(
        blend(gradients[which] ? gradients[which] + from : nullptr, momenta + which * size + from, out + which * size + from,
              to - from, keep));
  });
  in_slices(count, size, threads, [&](int64_t which, int64_t, int64_t from, int64_t to) {
    double sum = 0.0;
    for (int64_t i = 0; i < PIECES; ++i) sum += squares[static_cast<size_t>(which * PIECES + i)];
    resize(out + which * size + from, to - from, 1.0f / std::max(static_cast<float>(std::sqrt(sum)) * margin, 1e-20f));
  });
}

template <class T>
void apply(float* const* weights, const T* updates, int64_t count, int64_t size, float keep, float step, int threads) {
  in_slices(count, size, threads, [&](int64_t which, int64_t, int64_t from, int64_t to) {
    move(weights[which] + from, updates + which * size + from, to - from, keep, step);
  });
}

// --- AdamW with narrow means ---

// What a step does to every number; see `train/narrow_adamw.py`.
struct AdamFacts {
  float share_mean, share_square;            // of the gradient, and of its square, in the new means
  float by, eps;                             // the root of a mean square is divided by `by`, then `eps` is added
  float keep, step;
};

// Rounds up or down: `noise` has 16 bits, evenly spread, and what is cut off carries that often.
inline Brain cut(float x, uint32_t noise) { return static_cast<Brain>((float_to_bits(x) + noise) >> 16); }

void descend(float* weight, const float* slope, Brain* mean, Brain* square, const uint32_t* noise, int64_t count,
             const AdamFacts& facts) {
  const AdamFacts f = facts;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float g = slope[i], m = get(mean[i]), old = get(square[i]);
    const float first = m + f.share_mean * (g - m);
    const float second = old * (1.0f - f.share_square) + f.share_square * g * g;
    mean[i] = cut(first, noise[i]);
    square[i] = cut(second, noise[i] ^ 0xffffu);
    weight[i] = weight[i] * f.keep - f.step * first / (std::sqrt(second) / f.by + f.eps);
  }
}

// One step for `size` numbers; number i is rounded by `noise[i % period]`.
void adamw(float* weight, const float* slope, Brain* mean, Brain* square, int64_t size, const uint32_t* noise,
           int64_t period, const AdamFacts& facts, int threads) {
  in_slices(1, size, threads, [&](int64_t, int64_t, int64_t from, int64_t to) {
    for (int64_t count; from < to; from += count) {
      count = std::min(to - from, period - from % period);
      descend(weight + from, slope + from, mean + from, square + from, noise + from % period, count, facts);
    }
  });
}

}  // namespace
}  // namespace stockpot

using stockpot::with_type;

extern "C" {

void stockpot_norm(int64_t type, int64_t out_type, const void* x, const float* weight, const float* bias, void* out,
                   float* means, float* scales, int64_t rows, int64_t dim, float eps, int threads) {
  with_type(type, [&](auto in) {
    with_type(out_type, [&](auto to) {
      stockpot::normalise(static_cast<const decltype(in)*>(x), weight, bias, static_cast<decltype(to)*>(out), means, scales,
                          rows, dim, eps, threads);
    });
  });
}

void stockpot_norm_back(int64_t type, int64_t out_type, const void* slope, const void* x, const float* weight,
                        const float* means, const float* scales, void* to_x, float* to_weight, float* to_bias,
                        int64_t rows, int64_t dim, int threads) {
  with_type(type, [&](auto in) {
    with_type(out_type, [&](auto to) {
      stockpot::normalise_back(static_cast<const decltype(to)*>(slope), static_cast<const decltype(in)*>(x), weight, means,
                               scales, static_cast<decltype(in)*>(to_x), to_weight, to_bias, rows, dim, threads);
    });
  });
}

void stockpot_swiglu(int64_t type, const void* both, void* out, int64_t rows, int64_t width, int threads) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    stockpot::swiglu(static_cast<const T*>(both), static_cast<T*>(out), rows, width, threads);
  });
}

void stockpot_swiglu_back(int64_t type, const void* slope, const void* both, void* to_both, int64_t rows, int64_t width,
                          int threads) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    stockpot::swiglu_back(static_cast<const T*>(slope), static_cast<const T*>(both), static_cast<T*>(to_both), rows, width,
                          threads);
  });
}

void stockpot_gelu(int64_t type, const void* x, void* out, int64_t count, int threads) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    stockpot::gelu(static_cast<const T*>(x), static_cast<T*>(out), count, threads);
  });
}

void stockpot_gelu_back(int64_t type, const void* slope, const void* x, void* to_x, int64_t count, int threads) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    stockpot::gelu_back(static_cast<const T*>(slope), static_cast<const T*>(x), static_cast<T*>(to_x), count, threads);
  });
}

int stockpot_judge(int64_t type, void* logits, const int64_t* labels, int64_t count, int64_t vocab, float z_loss,
                   int needs_slope, double* sums, int threads) {
  bool is_good = false;
  with_type(type, [&](auto t) {
    is_good = stockpot::judge(static_cast<decltype(t)*>(logits), labels, count, vocab, z_loss, needs_slope != 0, sums, threads);
  });
  return is_good ? 0 : 1;
}

void stockpot_gather(int64_t type, const float* const* gradients, float* momenta, void* out, int64_t count, int64_t size,
                     float keep, float margin, int threads) {
  with_type(type, [&](auto t) {
    stockpot::gather(gradients, momenta, static_cast<decltype(t)*>(out), count, size, keep, margin, threads);
  });
}

void stockpot_apply(int64_t type, float* const* weights, const void* updates, int64_t count, int64_t size, float keep,
                    float step, int threads) {
  with_type(type, [&](auto t) {
    stockpot::apply(weights, static_cast<const decltype(t)*>(updates), count, size, keep, step, threads);
  });
}

void stockpot_adamw(float* weight, const float* slope, void* mean, void* square, int64_t size, const uint32_t* noise,
                    int64_t period, const float* facts, int threads) {
  const stockpot::AdamFacts f{facts[0], facts[1], facts[2], facts[3], facts[4], facts[5]};
  stockpot::adamw(weight, slope, static_cast<stockpot::Brain*>(mean), static_cast<stockpot::Brain*>(square), size, noise,
                  period, f, threads);
}

void stockpot_attention(const stockpot::AttentionFacts* facts) {
  with_type(facts->type, [&](auto t) {
    with_type(facts->angle_type, [&](auto a) {
      if (facts->mixed) stockpot::attend<decltype(t), decltype(a)>(*facts);
      else stockpot::place_heads<decltype(t), decltype(a)>(*facts);
    });
  });
}

void stockpot_attention_back(const stockpot::AttentionFacts* facts) {
  with_type(facts->type, [&](auto t) {
    with_type(facts->angle_type, [&](auto a) {
      if (facts->mixed) stockpot::attend_back<decltype(t), decltype(a)>(*facts);
      else stockpot::place_heads_back<decltype(t), decltype(a)>(*facts);
    });
  });
}

int stockpot_has_halves() { return stockpot::HAS_HALVES ? 1 : 0; }

float stockpot_largest(const float* x, int64_t count, int threads) { return stockpot::largest(x, count, threads); }

int stockpot_multiply_halves(const stockpot::Side* a, const stockpot::Side* b, int64_t high, int64_t wide, int64_t depth,
                             float* out, int threads) {
  return stockpot::multiply_halves(*a, *b, high, wide, depth, out, threads) ? 0 : 1;
}

}  // extern "C"
