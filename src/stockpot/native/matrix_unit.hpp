// The processor's matrix unit (AMX), where it has one: leave to use it, and its instructions.
#pragma once

#include <cstdint>

#if defined(__AMX_TILE__) && defined(__linux__) && !defined(STOCKPOT_NO_AMX) && !defined(STOCKPOT_PLAIN)
#define STOCKPOT_TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace stockpot {

constexpr int TILE_ROWS = 16;                // rows of inputs a tile loads, wherever it begins: so many more have room

#if STOCKPOT_TILES

// Ask the system for the unit, once for the whole process; it may refuse.
inline bool has_tiles() {
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return granted;
}

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The instructions themselves, since compilers differ in what they believe these read and write. Strides are in bytes.
template <int T> inline void tile_zero() { asm volatile("tilezero %%tmm%c0" ::"i"(T)); }
template <int T> inline void tile_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
}
template <int T> inline void tile_store(void* to, int64_t stride = 64) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
}
template <int C, int A, int B> inline void tile_signed() {     // C += A (signed) * B (unsigned)
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B> inline void tile_unsigned() {   // C += A (unsigned) * B (unsigned)
  asm volatile("tdpbuud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B> inline void tile_pairs() {      // C += A * B, pairs of bfloat16
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

// Holds the unit of this thread for the length of a job; while it is held, changing threads costs more.
class TileWork {
 public:
  explicit TileWork(const TileShapes& shapes = TileShapes()) {
    if (has_tiles()) asm volatile("ldtilecfg %0" ::"m"(shapes));
  }
  ~TileWork() {
    if (has_tiles()) asm volatile("tilerelease");
  }
  TileWork(const TileWork&) = delete;
  TileWork& operator=(const TileWork&) = delete;
};

#else

inline bool has_tiles() { return false; }
struct TileShapes {};
struct TileWork { explicit TileWork(const TileShapes& = TileShapes()) {} };

#endif

}  // namespace stockpot
