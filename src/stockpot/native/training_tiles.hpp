// Products of pairs of bfloat16 numbers on the matrix unit (AMX), and squares of numbers turned in registers: what attention for
// training uses of a processor beside its vectors. Sums are those of the unit: pairs added up in floats, in order of depth.
#pragma once

#include <cstdint>

#include "matrix_unit.hpp"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace stockpot {
namespace attention_detail {

constexpr int64_t SIDE = 16;                 // rows of a tile, and units of a row

#if defined(__AVX512F__)
// out[i][j] = in[j][i] of a square of 16 x 16 units of four bytes, whose rows are so many units apart.
inline void turn_square(const void* in, int64_t in_row, void* out, int64_t out_row) {
  __m512i x[SIDE], y[SIDE];
  for (int64_t i = 0; i < SIDE; ++i) x[i] = _mm512_loadu_si512(static_cast<const uint32_t*>(in) + i * in_row);
  for (int i = 0; i < SIDE; i += 2) {        // in every lane of 128 bits: squares of 2 x 2, then of 4 x 4
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < SIDE; i += 4)
    for (int j = 0; j < 2; ++j) {
      x[i + 2 * j] = _mm512_unpacklo_epi64(y[i + j], y[i + 2 + j]);
      x[i + 2 * j + 1] = _mm512_unpackhi_epi64(y[i + j], y[i + 2 + j]);
    }
  for (int i = 0; i < 4; ++i) {              // then the lanes themselves
    y[i] = _mm512_shuffle_i32x4(x[i], x[4 + i], 0x88), y[4 + i] = _mm512_shuffle_i32x4(x[i], x[4 + i], 0xdd);
    y[8 + i] = _mm512_shuffle_i32x4(x[8 + i], x[12 + i], 0x88), y[12 + i] = _mm512_shuffle_i32x4(x[8 + i], x[12 + i], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    uint32_t* to = static_cast<uint32_t*>(out) + i * out_row;
    _mm512_storeu_si512(to, _mm512_shuffle_i32x4(y[i], y[8 + i], 0x88));
    _mm512_storeu_si512(to + 8 * out_row, _mm512_shuffle_i32x4(y[i], y[8 + i], 0xdd));
  }
}
#endif

#if STOCKPOT_TILES && defined(__AMX_BF16__)
#define STOCKPOT_PAIR_TILES 1

// One to two tiles down and across of c = or += a · b; rows are so many units apart, `depth` is a multiple of SIDE.
template <int DOWN, int ACROSS, bool ADDS>
inline void tile_block(const uint32_t* a, int64_t a_row, const uint32_t* b, int64_t b_row, float* c, int64_t c_row, int64_t depth) {
  constexpr int LEFT = 4, RIGHT = 6;         // tiles 0 to 3 are the sums
  a_row *= 4, b_row *= 4, c_row *= 4;
  float *c1 = c + SIDE, *c2 = c + SIDE * c_row / 4, *c3 = c2 + SIDE;
  if constexpr (ADDS) {
    tile_load<0>(c, c_row);
    if constexpr (ACROSS == 2) tile_load<1>(c1, c_row);
    if constexpr (DOWN == 2) tile_load<2>(c2, c_row);
    if constexpr (DOWN == 2 && ACROSS == 2) tile_load<3>(c3, c_row);
  } else {
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  }
  for (int64_t k = 0; k < depth; k += SIDE) {
    tile_load<LEFT>(a + k, a_row);
    tile_load<RIGHT>(b + k * b_row / 4, b_row);
    tile_pairs<0, LEFT, RIGHT>();
    if constexpr (ACROSS == 2) {
      tile_load<RIGHT + 1>(b + k * b_row / 4 + SIDE, b_row);
      tile_pairs<1, LEFT, RIGHT + 1>();
    }
    if constexpr (DOWN == 2) {
      tile_load<LEFT + 1>(a + SIDE * a_row / 4 + k, a_row);
      tile_pairs<2, LEFT + 1, RIGHT>();
      if constexpr (ACROSS == 2) tile_pairs<3, LEFT + 1, RIGHT + 1>();
    }
  }
  tile_store<0>(c, c_row);
  if constexpr (ACROSS == 2) tile_store<1>(c1, c_row);
  if constexpr (DOWN == 2) tile_store<2>(c2, c_row);
  if constexpr (DOWN == 2 && ACROSS == 2) tile_store<3>(c3, c_row);
}

// c (high, wide) = or += a (high, depth) · b (depth, wide), depth in pairs; all three are multiples of SIDE.
template <bool ADDS>
inline void multiply_tiles(const uint32_t* a, int64_t a_row, const uint32_t* b, int64_t b_row, float* c, int64_t c_row, int64_t high,
                           int64_t wide, int64_t depth) {
  const bool odd_high = high % (2 * SIDE) != 0, odd_wide = wide % (2 * SIDE) != 0;
  const int64_t i_end = high - (odd_high ? SIDE : 0), j_end = wide - (odd_wide ? SIDE : 0);
  for (int64_t j = 0; j < j_end; j += 2 * SIDE) {
    for (int64_t i = 0; i < i_end; i += 2 * SIDE)
      tile_block<2, 2, ADDS>(a + i * a_row, a_row, b + j, b_row, c + i * c_row + j, c_row, depth);
    if (odd_high) tile_block<1, 2, ADDS>(a + i_end * a_row, a_row, b + j, b_row, c + i_end * c_row + j, c_row, depth);
  }
  if (!odd_wide) return;
  for (int64_t i = 0; i < i_end; i += 2 * SIDE)
    tile_block<2, 1, ADDS>(a + i * a_row, a_row, b + j_end, b_row, c + i * c_row + j_end, c_row, depth);
  if (odd_high) tile_block<1, 1, ADDS>(a + i_end * a_row, a_row, b + j_end, b_row, c + i_end * c_row + j_end, c_row, depth);
}
#endif

}  // namespace attention_detail
}  // namespace stockpot
