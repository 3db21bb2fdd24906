// Products of many rows with the processor's matrix unit (AMX), where it has one: the same sums, several times as fast.
//
// The unit multiplies bytes. Inputs of 16 bits go through it in two halves: sum w x = 256 sum w high(x) + sum w low(x), exactly.
// What follows the sums is done in the order of products.hpp, so that results are the same to the bit.
#pragma once

#include "lanes.hpp"

#if STOCKPOT_AVX512 && defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__linux__) && !defined(STOCKPOT_NO_AMX)
#define STOCKPOT_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace stockpot {

constexpr int TILE_ROWS = 16;                // rows of inputs a tile loads, wherever it begins: so many more have room

#if STOCKPOT_AMX

// Ask the system for the unit, once for the whole process; it may refuse.
inline bool has_tiles() {
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return granted;
}

// What the tiles are: sums, inputs and weights of spans of 64 inputs (wide) and of 32 (narrow).
enum TileName { SUMS, LOW_SUMS, WIDE_HIGH, WIDE_LOW, WIDE_WEIGHTS, NARROW_INPUTS, NARROW_WEIGHTS };

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 32, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 8};
};

// The instructions themselves, since compilers differ in what they believe these read and write.
template <int T> inline void tile_zero() { asm volatile("tilezero %%tmm%c0" ::"i"(T)); }
template <int T> inline void tile_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
}
template <int T> inline void tile_store(void* to) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(int64_t(64)), "i"(T) : "memory");
}
template <int C, int A, int B> inline void tile_signed() {     // C += A (signed) * B (unsigned)
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B> inline void tile_unsigned() {   // C += A (unsigned) * B (unsigned)
  asm volatile("tdpbuud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

// Holds the unit of this thread for the length of a job; while it is held, changing threads costs more.
class TileWork {
 public:
  TileWork() {
    const TileShapes shapes;
    if (has_tiles()) asm volatile("ldtilecfg %0" ::"m"(shapes));
  }
  ~TileWork() {
    if (has_tiles()) asm volatile("tilerelease");
  }
};

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

inline bool has_tiles() { return false; }
struct TileWork { TileWork() {} };
inline void split_span(const int16_t*, int8_t*) {}

#endif

}  // namespace stockpot
