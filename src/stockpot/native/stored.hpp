// Numbers as weights and caches hold them: floats, bfloat16 or halves. They are computed with as floats.
#pragma once

#include "lanes.hpp"
#include "numbers.hpp"

namespace stockpot {

enum Stored { FLOATS, BRAINS, HALVES };

// Where numbers of a type are.
template <class Byte> struct Place {
  Byte* bytes;
  int64_t type;

  int64_t size(int64_t count) const { return count * (type == FLOATS ? 4 : 2); }
  Place operator+(int64_t count) const { return {bytes + size(count), type}; }
};
using From = Place<const uint8_t>;
using To = Place<uint8_t>;

inline const float* floats(From from) { return reinterpret_cast<const float*>(from.bytes); }

inline Lanes load(From from) {
  if (from.type == FLOATS) return load(floats(from));
  const auto* shorts = reinterpret_cast<const uint16_t*>(from.bytes);
  if (from.type == HALVES) return load_half(shorts);
  float out[LANES];
  for (int i = 0; i < LANES; ++i) out[i] = get(Brain{shorts[i]});
  return load(out);
}

// Let so many numbers be fetched.
STOCKPOT_ASKING void ask_for(From from, int64_t count) {
  for (int64_t i = 0; i < from.size(count); i += LINE) ask_for_line(from.bytes + i);
}

inline void store(To to, Lanes x) {
  if (to.type == FLOATS) return store(reinterpret_cast<float*>(to.bytes), x);
  if (to.type == HALVES) return store_half(reinterpret_cast<uint16_t*>(to.bytes), x);
  float in[LANES];
  store(in, x);
  for (int i = 0; i < LANES; ++i) put(reinterpret_cast<Brain*>(to.bytes)[i], in[i]);
}

}  // namespace stockpot
