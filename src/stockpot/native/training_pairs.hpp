// What a product inside attention multiplies: floats, or pairs of bfloat16 numbers that one instruction multiplies and adds up in
// floats (AVX512-BF16). A pair holds two neighbours in depth, so that such products need half as many steps.
#pragma once

#include <algorithm>

#include "numbers.hpp"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#include <immintrin.h>
#endif

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

// A way to hold the sides of products. `Unit`: one step in depth; DEPTH: how many numbers that is.
struct Singles {
  using Unit = float;
  typedef Lane Many;
  static constexpr int64_t DEPTH = 1;
  static void add(Lane& sum, float left, Many right) { sum += left * right; }
  // Sixteen units of neighbouring columns from rows that follow each other in depth; a null row is 0.
  static void join(const float* first, const float*, float* to) {
    *reinterpret_cast<Lane*>(to) = *reinterpret_cast<const Lane*>(first);
  }
  // Rows (count, wide), `wide` a multiple of LANE, as a left side, in `room` unless they are one already.
  static Left<float> hold(const float* rows, int64_t, int64_t, int64_t stride, float*) { return {rows, stride}; }
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
  static __m512i half(const float* at) {
    return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(at))));
  }
  static void join(const float* first, const float* second, uint32_t* to) {
    const __m512i low = half(first), high = second ? _mm512_slli_epi32(half(second), 16) : _mm512_setzero_si512();
    _mm512_storeu_si512(to, _mm512_or_si512(low, high));
  }
  static Left<uint32_t> hold(const float* rows, int64_t count, int64_t wide, int64_t stride, uint32_t* room) {
    for (int64_t row = 0; row < count; ++row)
      for (int64_t i = 0; i < wide; i += LANE)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(room + (row * wide + i) / 2),
                            reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(rows + row * stride + i))));
    return {room, wide / 2};
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

// c (high, wide) = or += a (high, depth) · b (depth, wide), depth in units; element (i, k) of a is a[i * across + k * down]; b
// lies in panels that are `panel` units long in depth, of which the product begins at unit `from`; `wide` is padded.
template <class W, bool ADDS>
inline void multiply(const typename W::Unit* a, int64_t across, int64_t down, const typename W::Unit* b, int64_t panel, float* c,
                     int64_t c_row, int64_t high, int64_t wide, int64_t depth, int64_t from = 0) {
  int64_t j = 0;
  for (; j + PANEL <= wide; j += PANEL)
    tiles<W, ROWS, 2, ADDS>(a, across, down, b + j * panel + from * PANEL, c + j, c_row, high, depth);
  if (j < wide) tiles<W, ROWS, 1, ADDS>(a, across, down, b + j * panel + from * LANE, c + j, c_row, high, depth);
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
    for (int64_t i = 0; i < depth; ++i) {
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
