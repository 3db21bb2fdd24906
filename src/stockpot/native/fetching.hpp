// Asking for memory before it is needed.
//
// Asking has no result, and GCC 12 leaves out calls of functions that do nothing else. So all of these are made part of what calls them.
#pragma once

#include <cstdint>

#define STOCKPOT_ASKING __attribute__((always_inline)) inline

namespace stockpot {

constexpr int64_t LINE = 64;                 // bytes that memory gives at once

// Let memory be fetched into the second cache: a line, or so many bytes.
STOCKPOT_ASKING void ask_for_line(const void* line) { __builtin_prefetch(line, 0, 2); }
template <int64_t BYTES> STOCKPOT_ASKING void ask_for_lines(const void* from) {
#if !defined(__clang__)
#pragma GCC unroll 16
#endif
  for (int64_t i = 0; i < BYTES; i += LINE) ask_for_line(static_cast<const char*>(from) + i);
}

// Let some numbers be fetched into the first cache, to be read or to be written.
template <class T> STOCKPOT_ASKING void ask(const T* from, int64_t count) {
  for (int64_t i = 0; i < count; i += LINE / int64_t(sizeof(T))) __builtin_prefetch(from + i);
}
template <class T> STOCKPOT_ASKING void ask_to_write(T* from, int64_t count) {
  for (int64_t i = 0; i < count; i += LINE / int64_t(sizeof(T))) __builtin_prefetch(from + i, 1);
}

}  // namespace stockpot
