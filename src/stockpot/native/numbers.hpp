// Numbers as training stores them, float and bfloat16, and the loops over rows that all its kernels share.
//
// Everything is computed in float; what is stored decides only how a value is read and written. Loops are plain: the
// compiler turns them into whatever vectors its processor has.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace stockpot {

constexpr int64_t PIECES = 32;               // in which sums over rows are taken, whatever the number of threads

enum class Brain : uint16_t {};              // bfloat16: the upper half of a float's bits

inline float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float get(float x) { return x; }
inline float get(Brain x) { return bits_to_float(static_cast<uint32_t>(x) << 16); }
inline void put(float& to, float x) { to = x; }
inline void put(Brain& to, float x) {        // to the nearest, ties to even; what is not a number stays that
  const uint32_t bits = float_to_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to = static_cast<Brain>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// Calls `work` with a value of the stored type: 0 float, 1 bfloat16.
template <class Work> inline void with_type(int64_t type, Work work) {
  if (type == 0) work(float{});
  else work(Brain{});
}

// e^x, to about two units of the last place of a float; 0 below -87.
inline float fast_exp(float x) {
  constexpr float MAGIC = 12582912.0f;       // adding it rounds to whole numbers
  const float bounded = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  const float shifted = bounded * 1.44269504f + MAGIC;
  const float n = shifted - MAGIC;
  const float r = (bounded - n * 0.693145752f) - n * 1.42860677e-6f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const float out = bits_to_float(float_to_bits(p) + ((float_to_bits(shifted) - float_to_bits(MAGIC)) << 23));
  return x < -87.0f ? 0.0f : (x > 88.0f ? INFINITY : (x == x ? out : x));
}

// e^x for x up to 0 in half the steps, to 2e-5 of itself: for numbers that are rounded to eight bits. 0 below -87.
inline float fast_decay(float x) {
  constexpr float MAGIC = 12582912.0f;
  const float scaled = (x < -87.0f ? -87.0f : x) * 1.44269504f, shifted = scaled + MAGIC, r = scaled - (shifted - MAGIC);
  float p = 0.00133335581f;                  // 2^r: powers of log 2 over factorials
  p = p * r + 0.00961812911f;
  p = p * r + 0.0555041087f;
  p = p * r + 0.240226507f;
  p = p * r + 0.693147181f;
  p = p * r + 1.0f;
  const float out = bits_to_float(float_to_bits(p) + ((float_to_bits(shifted) - float_to_bits(MAGIC)) << 23));
  return x < -87.0f ? 0.0f : (x == x ? out : x);
}

// e^x for x up to 0, as exactly as numbers of T need it.
template <class T> inline float decay(float x) {
  if constexpr (sizeof(T) == sizeof(float)) return fast_exp(x);
  else return fast_decay(x);
}

}  // namespace stockpot
