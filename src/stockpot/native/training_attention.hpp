// Attention for training: heads cut out of one product, normalised and rotated; then scores, weights and averages of one
// head at a time, kept in the cache, with a backward pass that computes the weights again.
//
// Sources: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; for the backward pass Dao et al. 2022, arXiv:2205.14135,
// appendix B.2; for the rotation Su et al. 2021, arXiv:2104.09864, eq. 34.
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
  void *q, *k, *v;                           // (batch, heads or kv_heads, seq, head_dim); q times `scale`
  float* norms;                              // (batch, seq, heads + kv_heads): reciprocal root mean squares
  void* mixed;                               // (batch, seq, heads * head_dim)
  float* log_sums;                           // (batch, heads, seq): log of the sum of e^score
  const void* slope;                         // like mixed
  void *to_q, *to_k, *to_v;                  // like q, k, v
  void* to_qkv;                              // like qkv
  float *to_q_gain, *to_k_gain;
};

namespace attention_detail {

typedef float Lane __attribute__((vector_size(64), aligned(4), may_alias));
constexpr int64_t LANE = 16;
constexpr int64_t BLOCK = 32;                // queries whose keys have one limit
#if defined(__AVX512F__)
constexpr int ROWS = 8;                      // of a product computed together: what the registers hold
#else
constexpr int ROWS = 2;
#endif

inline int64_t padded(int64_t n) { return (n + LANE - 1) / LANE * LANE; }

template <int COUNT, int WIDE>
inline void tile(const float* a, int64_t across, int64_t down, const float* b, int64_t b_row, float* c, int64_t c_row,
                 int64_t depth) {
  Lane sums[COUNT][WIDE] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Lane right[WIDE];
#pragma GCC unroll 8
    for (int j = 0; j < WIDE; ++j) right[j] = *reinterpret_cast<const Lane*>(b + k * b_row + j * LANE);
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; ++i) {
      const float left = a[i * across + k * down];
#pragma GCC unroll 8
      for (int j = 0; j < WIDE; ++j) sums[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < WIDE; ++j) *reinterpret_cast<Lane*>(c + i * c_row + j * LANE) = sums[i][j];
}

template <int COUNT>
inline void tiles(const float* a, int64_t across, int64_t down, const float* b, int64_t b_row, float* c, int64_t c_row,
                  int64_t wide, int64_t depth) {
  int64_t j = 0;
  for (; j + 2 * LANE <= wide; j += 2 * LANE) tile<COUNT, 2>(a, across, down, b + j, b_row, c + j, c_row, depth);
  if (j < wide) tile<COUNT, 1>(a, across, down, b + j, b_row, c + j, c_row, depth);
}

// c (high, wide) = a (high, depth) · b (depth, wide); element (i, k) of a is a[i * across + k * down]; `wide` is padded.
inline void multiply(const float* a, int64_t across, int64_t down, const float* b, int64_t b_row, float* c, int64_t c_row,
                     int64_t high, int64_t wide, int64_t depth) {
  int64_t i = 0;
  for (; i + ROWS <= high; i += ROWS)
    tiles<ROWS>(a + i * across, across, down, b, b_row, c + i * c_row, c_row, wide, depth);
  for (; i < high; ++i) tiles<1>(a + i * across, across, down, b, b_row, c + i * c_row, c_row, wide, depth);
}

// The room one thread works in; grows to the largest head it has seen.
struct Room {
  std::vector<float> floats;
  float* get(int64_t count) {
    if (static_cast<int64_t>(floats.size()) < count) floats.resize(static_cast<size_t>(count));
    return floats.data();
  }
};
inline Room& room() {
  static thread_local Room own;
  return own;
}

template <class T> void widen(const T* from, int64_t from_row, float* to, int64_t rows, int64_t dim, int64_t wide) {
  for (int64_t row = 0; row < rows; ++row) {
    const T* in = from + row * from_row;
    float* out = to + row * wide;
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) out[i] = get(in[i]);
    for (int64_t i = dim; i < wide; ++i) out[i] = 0.0f;
  }
}

template <class T> void narrow(const float* from, int64_t wide, T* to, int64_t to_row, int64_t rows, int64_t dim, float by) {
  for (int64_t row = 0; row < rows; ++row) {
    const float* in = from + row * wide;
    T* out = to + row * to_row;
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) put(out[i], in[i] * by);
  }
}

// (rows, wide) to (wide, padded(rows)), with zeros in the padding.
inline void turn(const float* from, int64_t wide, float* to, int64_t rows) {
  const int64_t long_row = padded(rows);
  for (int64_t i = 0; i < wide; ++i) {
    for (int64_t row = 0; row < rows; ++row) to[i * long_row + row] = from[row * wide + i];
    for (int64_t row = rows; row < long_row; ++row) to[i * long_row + row] = 0.0f;
  }
}

inline const uint8_t* mask_row(const AttentionFacts& f, int64_t item, int64_t query) {
  if (!f.mask) return nullptr;
  const int64_t row = f.mask_rows == 1 ? 0 : item, viewer = f.mask_viewers == 1 ? 0 : query;
  return f.mask + (row * f.mask_viewers + viewer) * f.seq;
}

// Hides what a query must not see: the keys from `keys` to `wide`, and those that the mask names.
inline void hide(float* row, const uint8_t* seen, int64_t keys, int64_t wide) {
  if (seen) {
#pragma omp simd
    for (int64_t j = 0; j < keys; ++j) row[j] = seen[j] ? row[j] : -INFINITY;
  }
  for (int64_t j = keys; j < wide; ++j) row[j] = -INFINITY;
}

// Turns a row of scores, `wide` a multiple of LANE, into weights; what is hidden gets 0. Returns the log of the sum.
inline float weigh(float* row, int64_t wide) {
  float tops[LANE], sums[LANE], top = -INFINITY, sum = 0.0f;
  std::fill(tops, tops + LANE, -INFINITY);
  std::fill(sums, sums + LANE, 0.0f);
  for (int64_t j = 0; j < wide; j += LANE)
    for (int64_t i = 0; i < LANE; ++i) tops[i] = std::max(tops[i], row[j + i]);
  for (int64_t i = 0; i < LANE; ++i) top = std::max(top, tops[i]);
  if (top == -INFINITY) {                    // sees nothing
    std::fill(row, row + wide, 0.0f);
    return INFINITY;
  }
  for (int64_t j = 0; j < wide; j += LANE)
    for (int64_t i = 0; i < LANE; ++i) {
      row[j + i] = fast_exp(row[j + i] - top);
      sums[i] += row[j + i];
    }
  for (int64_t i = 0; i < LANE; ++i) sum += sums[i];
  const float by = 1.0f / sum;
  for (int64_t j = 0; j < wide; j += LANE)
    for (int64_t i = 0; i < LANE; ++i) row[j + i] *= by;
  return top + std::log(sum);
}

// The weights once more, from the log of their sum.
inline void weigh_again(float* row, int64_t wide, float log_sum) {
  for (int64_t j = 0; j < wide; j += LANE)
    for (int64_t i = 0; i < LANE; ++i) row[j + i] = fast_exp(row[j + i] - log_sum);
}

}  // namespace attention_detail

// --- heads out of one product, and back into it ---

constexpr int64_t LONGEST_HEAD = 1024;       // numbers of a head; training.py has it, too

// What the `head`-th head of a token's product is, and where its numbers lie among all heads of its kind.
struct HeadPlace {
  bool is_query, is_value;
  int64_t at;
  HeadPlace(const AttentionFacts& f, int64_t head, int64_t item, int64_t position)
      : is_query(head < f.heads), is_value(head >= f.heads + f.kv_heads) {
    const int64_t own = is_query ? head : is_value ? head - f.heads - f.kv_heads : head - f.heads;
    at = ((item * (is_query ? f.heads : f.kv_heads) + own) * f.seq + position) * f.head_dim;
  }
};

// The angles of a position, or null.
template <class A> const A* angles_of(const AttentionFacts& f, int64_t item, int64_t position) {
  if (!f.angles) return nullptr;
  return static_cast<const A*>(f.angles) + ((f.angle_rows == 1 ? 0 : item) * f.seq + position) * 2 * f.rotary_dim;
}

template <class T, class A> void place_heads(const AttentionFacts& f) {
  const int64_t all = f.heads + 2 * f.kv_heads, dim = f.head_dim, turned = f.heads + f.kv_heads;
  const int64_t half = f.rotary_dim / 2;
#pragma omp parallel for num_threads(static_cast<int>(f.threads)) schedule(static) if (f.threads > 1)
  for (int64_t token = 0; token < f.batch * f.seq; ++token) {
    const int64_t item = token / f.seq, at = token % f.seq;
    const T* in = static_cast<const T*>(f.qkv) + token * all * dim;
    const A* angle = angles_of<A>(f, item, at);
    alignas(64) float buffer[LONGEST_HEAD];
    for (int64_t head = 0; head < all; ++head) {
      const T* x = in + head * dim;
      const HeadPlace place(f, head, item, at);
      const bool is_query = place.is_query;
      T* to = static_cast<T*>(is_query ? f.q : place.is_value ? f.v : f.k) + place.at;
      if (place.is_value) {
        std::copy(x, x + dim, to);
        continue;
      }
      const float by = is_query ? f.scale : 1.0f;
      const float* gain = is_query ? f.q_gain : f.k_gain;
      float scale = 1.0f;
      if (gain) {
        float square = 0.0f;
#pragma omp simd reduction(+ : square)
        for (int64_t i = 0; i < dim; ++i) square += get(x[i]) * get(x[i]);
        scale = 1.0f / std::sqrt(square / static_cast<float>(dim) + f.eps);
        f.norms[token * turned + head] = scale;
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) buffer[i] = get(x[i]) * scale * gain[i];
      } else {
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) buffer[i] = get(x[i]);
      }
      int64_t i = 0;
      if (angle) {
#pragma omp simd
        for (int64_t p = 0; p < half; ++p) {
          const float a = buffer[p], b = buffer[p + half];
          put(to[p], by * (a * get(angle[p]) + b * get(angle[2 * half + p])));
          put(to[p + half], by * (b * get(angle[half + p]) + a * get(angle[3 * half + p])));
        }
        i = 2 * half;
      }
#pragma omp simd
      for (int64_t p = i; p < dim; ++p) put(to[p], by * buffer[p]);
    }
  }
}

template <class T, class A> void place_heads_back(const AttentionFacts& f) {
  const int64_t all = f.heads + 2 * f.kv_heads, dim = f.head_dim, turned = f.heads + f.kv_heads;
  const int64_t half = f.rotary_dim / 2, tokens = f.batch * f.seq, parts = std::min(PIECES, tokens);
  std::vector<float> sums(static_cast<size_t>(f.q_gain ? PIECES * 2 * dim : 0), 0.0f);
#pragma omp parallel for num_threads(static_cast<int>(f.threads)) schedule(static) if (f.threads > 1)
  for (int64_t part = 0; part < parts; ++part) {
    alignas(64) float buffer[LONGEST_HEAD];
    for (int64_t token = tokens * part / parts; token < tokens * (part + 1) / parts; ++token) {
      const int64_t item = token / f.seq, at = token % f.seq;
      const T* in = static_cast<const T*>(f.qkv) + token * all * dim;
      T* out = static_cast<T*>(f.to_qkv) + token * all * dim;
      const A* angle = angles_of<A>(f, item, at);
      for (int64_t head = 0; head < all; ++head) {
        const HeadPlace place(f, head, item, at);
        const bool is_query = place.is_query;
        const T* from = static_cast<const T*>(is_query ? f.to_q : place.is_value ? f.to_v : f.to_k) + place.at;
        T* to = out + head * dim;
        if (place.is_value) {
          std::copy(from, from + dim, to);
          continue;
        }
        const float by = is_query ? f.scale : 1.0f;
        int64_t i = 0;
        if (angle) {
#pragma omp simd
          for (int64_t p = 0; p < half; ++p) {
            const float a = by * get(from[p]), b = by * get(from[p + half]);
            buffer[p] = a * get(angle[p]) + b * get(angle[3 * half + p]);
            buffer[p + half] = b * get(angle[half + p]) + a * get(angle[2 * half + p]);
          }
          i = 2 * half;
        }
#pragma omp simd
        for (int64_t p = i; p < dim; ++p) buffer[p] = by * get(from[p]);
        const float* gain = is_query ? f.q_gain : f.k_gain;
        if (!gain) {
#pragma omp simd
          for (int64_t p = 0; p < dim; ++p) put(to[p], buffer[p]);
          continue;
        }
        const T* x = in + head * dim;
        const float scale = f.norms[token * turned + head];
        float* gains = sums.data() + part * 2 * dim + (is_query ? 0 : dim);
        float along = 0.0f;
#pragma omp simd reduction(+ : along)
        for (int64_t p = 0; p < dim; ++p) {
          const float unit = get(x[p]) * scale;
          gains[p] += buffer[p] * unit;
          along += buffer[p] * gain[p] * unit;
        }
        along /= static_cast<float>(dim);
#pragma omp simd
        for (int64_t p = 0; p < dim; ++p) put(to[p], scale * (buffer[p] * gain[p] - get(x[p]) * scale * along));
      }
    }
  }
  if (!f.q_gain) return;
  std::fill(f.to_q_gain, f.to_q_gain + dim, 0.0f);
  std::fill(f.to_k_gain, f.to_k_gain + dim, 0.0f);
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t i = 0; i < dim; ++i) {
      f.to_q_gain[i] += sums[static_cast<size_t>(part * 2 * dim + i)];
      f.to_k_gain[i] += sums[static_cast<size_t>(part * 2 * dim + dim + i)];
    }
}

// --- scores, weights, averages ---

template <class T> void attend(const AttentionFacts& f) {
  using namespace attention_detail;
  const int64_t dim = f.head_dim, wide = padded(dim), keys = padded(f.seq), group = f.heads / f.kv_heads;
#pragma omp parallel for num_threads(static_cast<int>(f.threads)) schedule(dynamic) if (f.threads > 1)
  for (int64_t task = 0; task < f.batch * f.kv_heads; ++task) {
    const int64_t item = task / f.kv_heads, kv = task % f.kv_heads;
    float* k = room().get(f.seq * wide * 2 + wide * keys + BLOCK * (2 * wide + keys));
    float *v = k + f.seq * wide, *k_turned = v + f.seq * wide, *q = k_turned + wide * keys;
    float *out = q + BLOCK * wide, *scores = out + BLOCK * wide;
    widen(static_cast<const T*>(f.k) + task * f.seq * dim, dim, k, f.seq, dim, wide);
    widen(static_cast<const T*>(f.v) + task * f.seq * dim, dim, v, f.seq, dim, wide);
    turn(k, wide, k_turned, f.seq);
    for (int64_t head = kv * group; head < (kv + 1) * group; ++head) {
      const int64_t first = (item * f.heads + head) * f.seq;
      for (int64_t start = 0; start < f.seq; start += BLOCK) {
        const int64_t rows = std::min(BLOCK, f.seq - start), seen = f.causal ? start + rows : f.seq;
        widen(static_cast<const T*>(f.q) + (first + start) * dim, dim, q, rows, dim, wide);
        multiply(q, wide, 1, k_turned, keys, scores, keys, rows, padded(seen), dim);
        for (int64_t row = 0; row < rows; ++row) {
          const int64_t query = start + row;
          hide(scores + row * keys, mask_row(f, item, query), f.causal ? query + 1 : f.seq, padded(seen));
          f.log_sums[first + query] = weigh(scores + row * keys, padded(seen));
        }
        multiply(scores, keys, 1, v, wide, out, wide, rows, wide, seen);
        narrow(out, wide, static_cast<T*>(f.mixed) + ((item * f.seq + start) * f.heads + head) * dim, f.heads * dim, rows,
               dim, 1.0f);
      }
    }
  }
}

template <class T> void attend_back(const AttentionFacts& f) {
  using namespace attention_detail;
  const int64_t dim = f.head_dim, wide = padded(dim), keys = padded(f.seq), group = f.heads / f.kv_heads;
  const int64_t plane = f.seq * wide;
#pragma omp parallel for num_threads(static_cast<int>(f.threads)) schedule(dynamic) if (f.threads > 1)
  for (int64_t task = 0; task < f.batch * f.kv_heads; ++task) {
    const int64_t item = task / f.kv_heads, kv = task % f.kv_heads;
    float* k = room().get(plane * 8 + 2 * wide * keys + 2 * f.seq * keys);
    float *v = k + plane, *k_turned = v + plane, *v_turned = k_turned + wide * keys, *q = v_turned + wide * keys;
    float *slope = q + plane, *part = slope + plane, *to_k = part + plane, *to_v = to_k + plane;
    float *weights = to_v + plane, *slopes = weights + f.seq * keys;
    widen(static_cast<const T*>(f.k) + task * f.seq * dim, dim, k, f.seq, dim, wide);
    widen(static_cast<const T*>(f.v) + task * f.seq * dim, dim, v, f.seq, dim, wide);
    turn(k, wide, k_turned, f.seq);
    turn(v, wide, v_turned, f.seq);
    std::fill(to_k, to_k + 2 * plane, 0.0f);
    for (int64_t head = kv * group; head < (kv + 1) * group; ++head) {
      const int64_t first = (item * f.heads + head) * f.seq;
      const int64_t token = (item * f.seq * f.heads + head) * dim;
      widen(static_cast<const T*>(f.q) + first * dim, dim, q, f.seq, dim, wide);
      widen(static_cast<const T*>(f.slope) + token, f.heads * dim, slope, f.seq, dim, wide);
      for (int64_t start = 0; start < f.seq; start += BLOCK) {
        const int64_t rows = std::min(BLOCK, f.seq - start), seen = f.causal ? start + rows : f.seq;
        float *weight = weights + start * keys, *to_score = slopes + start * keys;
        multiply(q + start * wide, wide, 1, k_turned, keys, weight, keys, rows, padded(seen), dim);
        multiply(slope + start * wide, wide, 1, v_turned, keys, to_score, keys, rows, padded(seen), dim);
        for (int64_t row = 0; row < rows; ++row) {
          const int64_t query = start + row;
          float *own = weight + row * keys, *to = to_score + row * keys;
          hide(own, mask_row(f, item, query), f.causal ? query + 1 : f.seq, padded(seen));
          weigh_again(own, padded(seen), f.log_sums[first + query]);
          const T* mixed = static_cast<const T*>(f.mixed) + token + query * f.heads * dim;
          float along = 0.0f;
#pragma omp simd reduction(+ : along)
          for (int64_t i = 0; i < dim; ++i) along += slope[query * wide + i] * get(mixed[i]);
#pragma omp simd
          for (int64_t j = 0; j < padded(seen); ++j) to[j] = own[j] * (to[j] - along);
        }
        multiply(to_score, keys, 1, k, wide, part + start * wide, wide, rows, wide, seen);
      }
      narrow(part, wide, static_cast<T*>(f.to_q) + first * dim, dim, f.seq, dim, 1.0f);
      for (int pass = 0; pass < 2; ++pass) {  // what the keys get, then the values
        const float *left = pass ? weights : slopes, *right = pass ? slope : q;
        float* sum = pass ? to_v : to_k;
        for (int64_t start = 0; start < f.seq; start += BLOCK) {
          const int64_t rows = std::min(BLOCK, f.seq - start), from = f.causal ? start : 0;
          multiply(left + from * keys + start, 1, keys, right + from * wide, wide, part, wide, rows, wide, f.seq - from);
#pragma omp simd
          for (int64_t i = 0; i < rows * wide; ++i) sum[start * wide + i] += part[i];
        }
      }
    }
    narrow(to_k, wide, static_cast<T*>(f.to_k) + task * f.seq * dim, dim, f.seq, dim, 1.0f);
    narrow(to_v, wide, static_cast<T*>(f.to_v) + task * f.seq * dim, dim, f.seq, dim, 1.0f);
  }
}

}  // namespace stockpot
