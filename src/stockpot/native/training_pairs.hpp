// What a product inside attention multiplies: floats, or pairs of bfloat16 numbers that one instruction multiplies and adds up in
// floats (AVX512-BF16), or many at once (AMX). A pair holds two neighbours in depth, so that such products need half as many steps.
#pragma once

#include <algorithm>

#include "numbers.hpp"
#include "training_tiles.hpp"

namespace stockpot {
namespace attention_detail {

typedef float Lane __attribute__((vector_size(64), aligned(4), may_alias));
constexpr int64_t LANE = 16;
constexpr int64_t PANEL = 2 * LANE;

inline int64_t padded(int64_t n) { return (n + LANE - 1) / LANE * LANE; }

// A left side: unit k of row i is at[i * across + k].
template <class Unit> struct Left {
  const Unit* at;
  int64_t across;
};

// A block of scores and of their weights' slopes, rows PANEL apart, before both are what `settle` makes of them.
struct Scores {
  float *score, *slope;
  const float *log_sum, *along;              // of each row: the log of the sum of e^score; slope · result
  int64_t rows, wide;
};

// A way to hold the sides of products. `Unit`: one step in depth; DEPTH: how many numbers that is.
struct Singles {
  using Unit = float;
  typedef Lane Many;
  static constexpr int64_t DEPTH = 1;
  struct Work {};                            // what is held while products are computed
  static constexpr bool has_tiles() { return false; }
  static void add(Lane& sum, float left, Many right) { sum += left * right; }
  // Sixteen units of neighbouring columns from rows that follow each other in depth; a null row is 0.
  static void join(const float* first, const float*, float* to) {
    *reinterpret_cast<Lane*>(to) = *reinterpret_cast<const Lane*>(first);
  }
  // Rows (count, wide), `wide` a multiple of LANE, as a left side, in `room` unless they are one already.
  static Left<float> hold(const float* rows, int64_t, int64_t, int64_t stride, float*) { return {rows, stride}; }
  // e^(score - top) of a row, which becomes row `row` of a left side; returns their sum.
  static float raise(float* scores, int64_t wide, float top, int64_t, float*) {
    Lane sums = {};
    float sum = 0.0f;
#pragma omp simd
    for (int64_t j = 0; j < wide; ++j) scores[j] = fast_exp(scores[j] - top);
    for (int64_t j = 0; j < wide; j += LANE) sums += *reinterpret_cast<Lane*>(scores + j);
    for (int i = 0; i < LANE; ++i) sum += sums[i];
    return sum;
  }
  // The left side that `raise` or `settle` has made of all rows: they themselves.
  static Left<float> raised(const float* rows, int64_t stride, int64_t, float*) { return {rows, stride}; }
  // The weights once more, and the scores' slopes: to columns of two sides by query, rows `stride` units apart.
  static void settle(const Scores& s, float* weights, float* slopes, int64_t stride, float*, int64_t) {
    for (int64_t row = 0; row < s.rows; ++row) {
#pragma omp simd
      for (int64_t j = 0; j < s.wide; ++j) {
        const float weight = fast_exp(s.score[row * PANEL + j] - s.log_sum[row]);
        weights[row * stride + j] = weight;
        slopes[row * stride + j] = weight * (s.slope[row * PANEL + j] - s.along[row]);
      }
    }
  }
};

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
struct Pairs {
  using Unit = uint32_t;
  typedef uint32_t Many __attribute__((vector_size(64), aligned(4), may_alias));
  static constexpr int64_t DEPTH = 2;
  static void add(Lane& sum, uint32_t left, Many right) {
    sum = reinterpret_cast<Lane>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                                                  reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(left))),
                                                  reinterpret_cast<__m512bh>(right)));
  }
#if STOCKPOT_PAIR_TILES
  using Work = TileWork;
  static bool has_tiles() { return stockpot::has_tiles(); }
#else
  struct Work {};
  static constexpr bool has_tiles() { return false; }
#endif
  // Sixteen pairs of a number of the first and one of the second.
  static __m512i paired(__m512 first, __m512 second) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19,
                                           3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first)));
  }
  static void narrow(__m512 numbers, uint32_t* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(numbers)));
  }
  static void join(const float* first, const float* second, uint32_t* to) {
    _mm512_storeu_si512(to, paired(_mm512_loadu_ps(first), second ? _mm512_loadu_ps(second) : _mm512_setzero_ps()));
  }
  static Left<uint32_t> hold(const float* rows, int64_t count, int64_t wide, int64_t stride, uint32_t* room) {
    for (int64_t row = 0; row < count; ++row)
      for (int64_t i = 0; i < wide; i += LANE)
        narrow(_mm512_loadu_ps(rows + row * stride + i), room + (row * wide + i) / 2);
    return {room, wide / 2};
  }
  // e^x to 3e-6 of itself for x up to 88, 0 below -87: enough for numbers that are rounded to eight bits.
  static __m512 power(__m512 x) {
    const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693147181f), x);
    __m512 p = _mm512_set1_ps(1.0f / 120);
    for (const float next : {1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(next));
    return _mm512_maskz_scalef_ps(counts, p, n);
  }
  static float raise(const float* scores, int64_t wide, float top, int64_t row, uint32_t* room) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t j = 0; j < wide; j += LANE) {
      const __m512 weight = power(_mm512_sub_ps(_mm512_loadu_ps(scores + j), _mm512_set1_ps(top)));
      sum = _mm512_add_ps(sum, weight);
      narrow(weight, room + (row * wide + j) / 2);
    }
    return _mm512_reduce_add_ps(sum);
  }
  static Left<uint32_t> raised(const void*, int64_t, int64_t wide, uint32_t* room) { return {room, wide / 2}; }
  // Here the slopes become columns of a left side, too, rows `across` units apart.
  static void settle(const Scores& s, uint32_t* weights, uint32_t* slopes, int64_t stride, uint32_t* left, int64_t across) {
    for (int64_t row = 0; row < s.rows; row += 2)
      for (int64_t j = 0; j < s.wide; j += LANE) {
        __m512 weight[2] = {}, slope[2] = {};
        for (int64_t i = 0; i < std::min<int64_t>(2, s.rows - row); ++i) {
          const int64_t at = (row + i) * PANEL + j;
          weight[i] = power(_mm512_sub_ps(_mm512_loadu_ps(s.score + at), _mm512_set1_ps(s.log_sum[row + i])));
          slope[i] = _mm512_mul_ps(weight[i], _mm512_sub_ps(_mm512_loadu_ps(s.slope + at), _mm512_set1_ps(s.along[row + i])));
          narrow(slope[i], left + (row + i) * across + j / 2);
        }
        _mm512_storeu_si512(weights + row / 2 * stride + j, paired(weight[0], weight[1]));
        _mm512_storeu_si512(slopes + row / 2 * stride + j, paired(slope[0], slope[1]));
      }
  }
};
#endif

// How the sides of products are held where activations are stored as T.
template <class T> struct Held { using Way = Singles; };
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
template <> struct Held<Brain> { using Way = Pairs; };
#endif

#if defined(__AVX512F__)
constexpr int ROWS = 8;                      // of a product computed together: what the registers hold
#else
constexpr int ROWS = 2;
#endif

template <class W, int COUNT, int WIDE, bool ADDS>
inline void tile(const typename W::Unit* a, int64_t across, int64_t down, const typename W::Unit* b, float* c, int64_t c_row,
                 int64_t depth) {
  using Many = typename W::Many;
  Lane sums[COUNT][WIDE];
#pragma GCC unroll 8
  for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < WIDE; ++j) sums[i][j] = ADDS ? *reinterpret_cast<const Lane*>(c + i * c_row + j * LANE) : Lane{};
  for (int64_t k = 0; k < depth; ++k) {
    Many right[WIDE];
#pragma GCC unroll 8
    for (int j = 0; j < WIDE; ++j) right[j] = *reinterpret_cast<const Many*>(b + (k * WIDE + j) * LANE);
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; ++i) {
      const typename W::Unit left = a[i * across + k * down];
#pragma GCC unroll 8
      for (int j = 0; j < WIDE; ++j) W::add(sums[i][j], left, right[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < WIDE; ++j) *reinterpret_cast<Lane*>(c + i * c_row + j * LANE) = sums[i][j];
}

template <class W, int COUNT, int WIDE, bool ADDS>
inline void tiles(const typename W::Unit* a, int64_t across, int64_t down, const typename W::Unit* b, float* c, int64_t c_row,
                  int64_t high, int64_t depth) {
  int64_t i = 0;
  for (; i + COUNT <= high; i += COUNT)
    tile<W, COUNT, WIDE, ADDS>(a + i * across, across, down, b, c + i * c_row, c_row, depth);
  if constexpr (COUNT > 1)
    if (i < high)
      tiles<W, COUNT / 2, WIDE, ADDS>(a + i * across, across, down, b, c + i * c_row, c_row, high - i, depth);
}

// `multiply` in vectors.
template <class W, bool ADDS>
inline void in_vectors(const typename W::Unit* a, int64_t across, int64_t down, const typename W::Unit* b, int64_t panel, float* c,
                       int64_t c_row, int64_t high, int64_t wide, int64_t depth, int64_t from) {
  int64_t j = 0;
  for (; j + PANEL <= wide; j += PANEL)
    tiles<W, ROWS, 2, ADDS>(a, across, down, b + j * panel + from * PANEL, c + j, c_row, high, depth);
  if (j < wide) tiles<W, ROWS, 1, ADDS>(a, across, down, b + j * panel + from * LANE, c + j, c_row, high, depth);
}

// c (high, wide) = or += a (high, depth) · b (depth, wide), depth in units; element (i, k) of a is a[i * across + k * down]; b
// lies in panels that are `panel` units long in depth, of which the product begins at unit `from`; `wide` is padded.
template <class W, bool ADDS>
inline void multiply(const typename W::Unit* a, int64_t across, int64_t down, const typename W::Unit* b, int64_t panel, float* c,
                     int64_t c_row, int64_t high, int64_t wide, int64_t depth, int64_t from = 0) {
#if STOCKPOT_PAIR_TILES
  if constexpr (W::DEPTH == 2) {
    const int64_t some = high / SIDE * SIDE, deep = depth / SIDE * SIDE;
    if (down == 1 && some && deep && has_tiles()) {  // what the tiles leave over follows
      for (int64_t j = 0; j < wide; j += PANEL) {
        const int64_t width = std::min(PANEL, wide - j);
        multiply_tiles<ADDS>(a, across, b + j * panel + from * width, width, c + j, c_row, some, width, deep);
      }
      if (deep < depth) in_vectors<W, true>(a + deep, across, 1, b, panel, c, c_row, some, wide, depth - deep, from + deep);
      if (some < high)
        in_vectors<W, ADDS>(a + some * across, across, 1, b, panel, c + some * c_row, c_row, high - some, wide, depth, from);
      return;
    }
  }
#endif
  in_vectors<W, ADDS>(a, across, down, b, panel, c, c_row, high, wide, depth, from);
}

// Rows (count, wide) to rows `first` and following, a multiple of DEPTH, of panels over (panel units, wide).
template <class W>
inline void to_panels(const float* rows, int64_t count, int64_t wide, typename W::Unit* out, int64_t panel, int64_t first) {
  for (int64_t j = 0; j < wide; j += PANEL) {
    const int64_t width = std::min(PANEL, wide - j);
    for (int64_t row = 0; row < count; row += W::DEPTH) {
      const float* own = rows + row * wide + j;
      for (int64_t i = 0; i < width; i += LANE)
        W::join(own + i, row + 1 < count ? own + wide + i : nullptr, out + j * panel + (first + row) / W::DEPTH * width + i);
    }
  }
}

// Rows (count, `wide` units apart) that begin at a multiple of PANEL to columns `first` and following of panels over (depth
// units, keys).
template <class Unit>
inline void turn(const Unit* rows, int64_t count, int64_t wide, Unit* out, int64_t depth, int64_t keys, int64_t first) {
  for (int64_t start = 0; start < count; start += LANE) {
    const int64_t column = first + start, panel = column / PANEL * PANEL, width = std::min(PANEL, keys - panel);
    Unit* to = out + panel * depth + column % PANEL;
    const int64_t some = std::min(LANE, count - start);
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; some == LANE && i + LANE <= depth; i += LANE) turn_square(rows + start * wide + i, wide, to + i * width, width);
#endif
    for (; i < depth; ++i) {
      if (some == LANE) {
#pragma omp simd
        for (int64_t row = 0; row < LANE; ++row) to[i * width + row] = rows[(start + row) * wide + i];
      } else {
        for (int64_t row = 0; row < LANE; ++row) to[i * width + row] = row < some ? rows[(start + row) * wide + i] : Unit{};
      }
    }
  }
}

}  // namespace attention_detail
}  // namespace stockpot
