// How weights come into the form that products.hpp reads: packed numbers of GGUF files to floats, floats to digits on a grid.
//
// Both do what their Python twins do (the gguf package, model/grids.py), to the bit, and some ten times as fast.
#pragma once

#include "products.hpp"
#include "team.hpp"

namespace stockpot {

constexpr int HALVES = 16;                   // converted together

// --- what files hold ---

enum Kind { Q4_0 = 2, Q4_1 = 3, Q8_0 = 8, Q4_K = 12, Q6_K = 14 };  // as GGUF numbers them

struct Block {
  int64_t bytes, numbers;
};

inline Block block_of(int kind) {
  switch (kind) {
    case Q4_0: return {18, 32};
    case Q4_1: return {20, 32};
    case Q8_0: return {34, 32};
    case Q4_K: return {144, 256};
    case Q6_K: return {210, 256};
    default: return {0, 0};
  }
}

inline void halves(const uint8_t* from, int64_t stride, int count, float* out) {
  uint16_t found[HALVES] = {};
  for (int i = 0; i < count; ++i) std::memcpy(found + i, from + i * stride, 2);
  store(out, load_half(found));
}

inline void decode_q4(const uint8_t* __restrict__ digits, float scale, float low, int centre, float* __restrict__ out) {
  for (int i = 0; i < 16; ++i) {
    out[i] = scale * float(int(digits[i] & 15) - centre) + low;
    out[i + 16] = scale * float(int(digits[i] >> 4) - centre) + low;
  }
}

inline void decode_q8(const int8_t* __restrict__ digits, float scale, float* __restrict__ out) {
  for (int i = 0; i < 32; ++i) out[i] = scale * float(digits[i]);
}

inline void decode_q4_k(const uint8_t* __restrict__ block, float scale, float least, float* __restrict__ out) {
  const uint8_t* packed = block + 4;
  const uint8_t* digits = block + 16;
  for (int part = 0; part < 8; ++part) {
    const int other = part - 4;              // the last four take their upper bits from the first eight bytes
    const int factor = part < 4 ? packed[part] & 63 : (packed[8 + other] & 15) | ((packed[other] >> 6) << 4);
    const int drop = part < 4 ? packed[4 + part] & 63 : (packed[8 + other] >> 4) | ((packed[4 + other] >> 6) << 4);
    const float d = scale * float(factor), m = least * float(drop);
    const uint8_t* own = digits + part / 2 * 32;
    for (int i = 0; i < 32; ++i) out[part * 32 + i] = d * float((own[i] >> (part % 2 * 4)) & 15) - m;
  }
}

inline void decode_q6_k(const uint8_t* __restrict__ block, float scale, float* __restrict__ out) {
  const uint8_t *low = block, *high = block + 128;
  const int8_t* factors = reinterpret_cast<const int8_t*>(block + 192);
  for (int half = 0; half < 2; ++half)
    for (int part = 0; part < 4; ++part)
      for (int i = 0; i < 32; ++i) {
        const int four = (low[half * 64 + part % 2 * 32 + i] >> (part / 2 * 4)) & 15;
        const int two = (high[half * 32 + i] >> (2 * part)) & 3;
        const int at = half * 128 + part * 32 + i;
        out[at] = scale * float(factors[at / 16]) * float((four | two << 4) - 32);
      }
}

// `count` blocks, at most as many as halves are converted together; tells whether all numbers are finite.
inline bool decode(int kind, const uint8_t* bytes, int count, float* out) {
  const Block size = block_of(kind);
  float first[HALVES], second[HALVES] = {};
  const int64_t at = kind == Q6_K ? 208 : 0;
  halves(bytes + at, size.bytes, count, first);
  if (kind == Q4_1 || kind == Q4_K) halves(bytes + 2, size.bytes, count, second);
  for (int i = 0; i < count; ++i, bytes += size.bytes, out += size.numbers) {
    if (kind == Q4_0) decode_q4(bytes + 2, first[i], 0.0f, 8, out);
    if (kind == Q4_1) decode_q4(bytes + 4, first[i], second[i], 0, out);
    if (kind == Q4_K) decode_q4_k(bytes, first[i], second[i], out);
    if (kind == Q6_K) decode_q6_k(bytes, first[i], out);
    if (kind == Q8_0) decode_q8(reinterpret_cast<const int8_t*>(bytes + 2), first[i], out);
  }
  bool finite = true;                        // digits are small: numbers are finite where what multiplies them is
  for (int i = 0; i < count; ++i) finite = finite && std::isfinite(first[i]) && std::isfinite(second[i]);
  return finite;
}

// --- floats to digits ---

struct Packing {
  const float* weight;                       // (outputs, inputs)
  int64_t outputs, inputs;
  bool paired;                               // two halves of outputs, whose blocks are stored in turns
  Matrix to;                                 // with room for digits, scales and lows

  const float* row(int64_t block, int lane) const {
    const int64_t at = paired ? block % 2 * (outputs / 2) + block / 2 * LANES + lane : block * LANES + lane;
    return at < outputs ? weight + at * inputs : nullptr;
  }

  void pack(int64_t block) const {
    for (int64_t span = 0; span < to.spans(); ++span) {
      const int64_t from = span * to.span(), present = std::clamp<int64_t>(inputs - from, 0, to.span());
      float values[LANES][WIDE_SPAN] = {};
      for (int lane = 0; lane < LANES; ++lane)
        if (const float* own = row(block, lane)) std::copy(own + from, own + from + present, values[lane]);
      const int64_t place = (block * to.spans() + span) * LANES;
      auto* digits = const_cast<uint8_t*>(to.block(block)) + from * LANES * to.bits / 8;
      auto* scales = const_cast<uint16_t*>(to.scales) + place;
      if (to.bits == 8) wide(values, block, int(present), scales, digits);
      else narrow(values, int(present), scales, const_cast<uint16_t*>(to.lows) + place, digits);
    }
  }

 private:
  // Round to halves times the gain; returns what they stand for.
  Lanes as_halves(Lanes x, uint16_t* out) const {
    store_half(out, x / fill(float(to.gain)));
    return load_half(out) * fill(float(to.gain));
  }

  static float divisor(float scale) { return scale == 0.0f ? 1.0f : scale; }

  void wide(
      const float (*values)[WIDE_SPAN], int64_t block, int present, uint16_t* scales, uint8_t* digits) const {
    float tops[LANES], sizes[LANES];
    for (int lane = 0; lane < LANES; ++lane) tops[lane] = top_of(values[lane], WIDE_SPAN);
    store(sizes, as_halves(load(tops) / fill(127.0f), scales));
    constexpr int ORDER[4] = {0, 2, 1, 3};
    for (int lane = 0; lane < LANES; ++lane) {
      int16_t found[WIDE_SPAN];
      const Lanes by = fill(divisor(sizes[lane]));
      for (int i = 0; i < WIDE_SPAN; i += LANES)
        store_digits(found + i, smaller(larger(whole(load(values[lane] + i) / by), fill(-127.0f)), fill(127.0f)));
      const int there = row(block, lane) ? present : 0;  // what is not there has the digit 0, which stands for -128
      std::fill(found + there, found + WIDE_SPAN, int16_t(-128));
      for (int line = 0; line < WIDE_SPAN / 4; ++line)
        for (int j = 0; j < 4; ++j) digits[line * LINE + lane * 4 + j] = uint8_t(found[line * 4 + ORDER[j]] + 128);
    }
  }

  void narrow(
      const float (*values)[WIDE_SPAN], int present, uint16_t* scales, uint16_t* lows, uint8_t* digits) const {
    float least[LANES], most[LANES], steps[LANES], floors[LANES];
    for (int lane = 0; lane < LANES; ++lane) {
      least[lane] = most[lane] = values[lane][0];
      for (int i = 1; i < present; ++i) {
        least[lane] = std::min(least[lane], values[lane][i]);
        most[lane] = std::max(most[lane], values[lane][i]);
      }
    }
    const Lanes low = as_halves(load(least), lows);
    store(floors, low);
    store(steps, as_halves((load(most) - low) / fill(15.0f), scales));
    for (int lane = 0; lane < LANES; ++lane) {
      int16_t found[NARROW_SPAN];
      const Lanes by = fill(divisor(steps[lane])), under = fill(floors[lane]);
      for (int i = 0; i < NARROW_SPAN; i += LANES)
        store_digits(found + i, smaller(larger(whole((load(values[lane] + i) - under) / by), fill(0.0f)), fill(15.0f)));
      std::fill(found + present, found + NARROW_SPAN, int16_t(0));
      for (int line = 0; line < NARROW_SPAN / 8; ++line)
        for (int j = 0; j < 4; ++j)
          digits[line * LINE + lane * 4 + j] = uint8_t(found[line * 8 + j] | found[line * 8 + 4 + j] << 4);
    }
  }
};

}  // namespace stockpot
