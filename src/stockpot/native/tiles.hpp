// Products of many rows with the processor's matrix unit (AMX), where it has one: the same sums, several times as fast.
//
// The unit multiplies bytes. Inputs of 16 bits go through it in two halves: sum w x = 256 sum w high(x) + sum w low(x), exactly.
// What follows the sums is done in the order of products.hpp, so that results are the same to the bit.
#pragma once

#include "lanes.hpp"
#include "matrix_unit.hpp"

#if STOCKPOT_AVX512 && STOCKPOT_TILES && defined(__AMX_INT8__)
#define STOCKPOT_AMX 1
#endif

namespace stockpot {

#if STOCKPOT_AMX

// What the tiles are: sums, inputs and weights of spans of 64 inputs (wide) and of 32 (narrow).
enum TileName { SUMS, LOW_SUMS, WIDE_HIGH, WIDE_LOW, WIDE_WEIGHTS, NARROW_INPUTS, NARROW_WEIGHTS };

inline bool has_byte_tiles() { return has_tiles(); }

inline TileShapes byte_shapes() {
  TileShapes shapes;
  shapes.row_bytes[NARROW_INPUTS] = 32;
  shapes.rows[NARROW_WEIGHTS] = 8;
  return shapes;
}

// 64 inputs of 16 bits -> their high bytes, then their low bytes, each four in the order (0, 2, 1, 3) that weights have.
inline void split_span(const int16_t* digits, int8_t* out) {
  const __m256i turn = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
  for (int i = 0; i < 64; i += 32) {
    const __m512i x = _mm512_loadu_si512(digits + i);
    const __m256i high = _mm512_cvtepi16_epi8(_mm512_srai_epi16(x, 8)), low = _mm512_cvtepi16_epi8(x);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_shuffle_epi8(high, turn));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 64 + i), _mm256_shuffle_epi8(low, turn));
  }
}

// sums of high bytes, sums of low bytes, what the weights' offset adds -> the sums of products
inline Sums joined(const int32_t* high, const int32_t* low, int32_t correction) {
  const __m512i top = _mm512_slli_epi32(_mm512_load_si512(high), 8);
  return {_mm512_add_epi32(_mm512_add_epi32(top, _mm512_load_si512(low)), _mm512_set1_epi32(correction))};
}
inline Sums loaded(const int32_t* sums) { return {_mm512_load_si512(sums)}; }

#else

inline bool has_byte_tiles() { return false; }
inline TileShapes byte_shapes() { return {}; }
inline void split_span(const int16_t*, int8_t*) {}

#endif

}  // namespace stockpot
