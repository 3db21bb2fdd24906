// Attention of some queries to one row of the cache.
//
// Keys and values are halves. They are looked at 32 positions at a time, in blocks that begin at multiples of 32 whatever
// is asked, so that a token read alone and one read among many add up alike.
#pragma once

#include <algorithm>
#include <limits>

#include "lanes.hpp"

namespace stockpot {

constexpr int KEYS = 2 * LANES;              // positions at a time
constexpr int TOGETHER = 3;                  // queries at a time: what the registers hold

// Queries of one key head that are looked at together.
struct Gaze {
  const float* const* queries;               // (count) vectors of head_dim, times the scale already
  float* const* out;                         // (count) vectors of head_dim
  const int* first;                          // (count) first position seen
  const int* last;                           // (count) last position seen
  int count;
  int64_t head_dim;
};

struct GazeRoom {                            // scratch of one thread
  float* most;                               // (count) largest score so far
  float* mass;                               // (count) sum of the weights so far
  float quarters[TOGETHER][KEYS * 4];
  float weights[TOGETHER][KEYS];
  float fading[TOGETHER];                    // factor on what was gathered before
};

#if STOCKPOT_AVX512

// Eight keys at a time, whose sums are finished together.
template <int Q> inline void score(const Gaze& gaze, GazeRoom& room, int q, const uint16_t* keys, int count) {
  const int64_t dim = gaze.head_dim, last = (count - 1) * dim;
  for (int j = 0; j < count; j += LANES) {
    __m256 found[Q][2];
    for (int half = 0; half < 2; ++half) {
      Lanes sums[Q][8];
      for (int i = 0; i < Q; ++i)
        for (Lanes& one : sums[i]) one = fill(0.0f);
      for (int64_t d = 0; d < dim; d += LANES) {
        Lanes x[Q];
        for (int i = 0; i < Q; ++i) x[i] = load(gaze.queries[q + i] + d);
        STOCKPOT_UNROLL(8)
        for (int k = 0; k < 8; ++k) {
          const Lanes key = load_half(keys + std::min((j + half * 8 + k) * dim, last) + d);
          for (int i = 0; i < Q; ++i) sums[i][k] = fma(x[i], key, sums[i][k]);
        }
      }
      for (int i = 0; i < Q; ++i) found[i][half] = sums_of_8(sums[i]);
    }
    for (int i = 0; i < Q; ++i) store(room.weights[i] + j, join(found[i][0], found[i][1]));
  }
}

#else

template <int Q> inline void score(const Gaze& gaze, GazeRoom& room, int q, const uint16_t* keys, int count) {
  for (int j = 0; j < count; j += 2) {
    const uint16_t *a = keys + j * gaze.head_dim, *b = j + 1 < count ? a + gaze.head_dim : a;
    Lanes sums[Q][2];
    for (int i = 0; i < Q; ++i) sums[i][0] = sums[i][1] = fill(0.0f);
    for (int64_t d = 0; d < gaze.head_dim; d += LANES) {
      const Lanes first = load_half(a + d), second = load_half(b + d);
      for (int i = 0; i < Q; ++i) {
        const Lanes x = load(gaze.queries[q + i] + d);
        sums[i][0] = fma(x, first, sums[i][0]);
        sums[i][1] = fma(x, second, sums[i][1]);
      }
    }
    for (int i = 0; i < Q; ++i) {
      store_quarter(room.quarters[i] + 4 * j, sums[i][0]);
      store_quarter(room.quarters[i] + 4 * j + 4, sums[i][1]);
    }
  }
  for (int i = 0; i < Q; ++i)
    for (int j = 0; j < KEYS; j += LANES) store(room.weights[i] + j, sum_quarters(room.quarters[i] + 4 * j));
}

#endif

// Turn the scores of a query into weights relative to the largest score so far; tell whether it sees any position.
// Source: Milakov & Gimelshein 2018, arXiv:1805.02867, algorithm 3.
inline bool weigh(const Gaze& gaze, GazeRoom& room, int q, int i, int start) {
  float* weights = room.weights[i];
  const int from = std::max(0, gaze.first[q] - start), to = std::min(KEYS, gaze.last[q] + 1 - start);
  room.fading[i] = 1.0f;
  if (from >= to) {
    std::fill(weights, weights + KEYS, 0.0f);
    return false;
  }
  constexpr float never = -std::numeric_limits<float>::infinity();
  std::fill(weights, weights + from, never);
  std::fill(weights + to, weights + KEYS, never);
  const Lanes a = load(weights), b = load(weights + LANES);
  const float before = room.most[q], most = std::max(before, largest(larger(a, b)));
  const Lanes top = fill(most);
  store(weights, exponential(a - top));
  store(weights + LANES, exponential(b - top));
  std::fill(weights, weights + from, 0.0f);
  std::fill(weights + to, weights + KEYS, 0.0f);
  if (before == never) {
    room.fading[i] = 0.0f;
  } else if (most > before) {
    float fading[LANES];
    store(fading, exponential(fill(before - most)));
    room.fading[i] = fading[0];
  }
  room.mass[q] = room.mass[q] * room.fading[i] + sum(load(weights) + load(weights + LANES));
  room.most[q] = most;
  return true;
}

template <int Q, int WIDE>
inline void gather(const Gaze& gaze, const GazeRoom& room, int q, const uint16_t* values, int count, int64_t from) {
  Lanes sums[Q][WIDE];
  for (int i = 0; i < Q; ++i)
    for (int w = 0; w < WIDE; ++w)
      sums[i][w] = load(gaze.out[q + i] + from + w * LANES) * fill(room.fading[i]);
  for (int j = 0; j < count; ++j) {
    const uint16_t* value = values + j * gaze.head_dim + from;
    Lanes part[WIDE];
    for (int w = 0; w < WIDE; ++w) part[w] = load_half(value + w * LANES);
    for (int i = 0; i < Q; ++i) {
      const Lanes x = fill(room.weights[i][j]);
      for (int w = 0; w < WIDE; ++w) sums[i][w] = fma(x, part[w], sums[i][w]);
    }
  }
  for (int i = 0; i < Q; ++i)
    for (int w = 0; w < WIDE; ++w) store(gaze.out[q + i] + from + w * LANES, sums[i][w]);
}

template <int Q>
inline void look(const Gaze& gaze, GazeRoom& room, int q, int start, int count, const uint16_t* keys,
                 const uint16_t* values) {
  score<Q>(gaze, room, q, keys, count);
  bool sees = false;
  for (int i = 0; i < Q; ++i) sees |= weigh(gaze, room, q + i, i, start);
  if (!sees) return;
  int64_t from = 0;
#if STOCKPOT_AVX512
  for (; from + 4 * LANES <= gaze.head_dim; from += 4 * LANES) gather<Q, 4>(gaze, room, q, values, count, from);
#endif
  for (; from + 2 * LANES <= gaze.head_dim; from += 2 * LANES) gather<Q, 2>(gaze, room, q, values, count, from);
  if (from < gaze.head_dim) gather<Q, 1>(gaze, room, q, values, count, from);
}

// Average the values of the positions each query sees.
inline void attend(const Gaze& gaze, GazeRoom& room, const uint16_t* keys, const uint16_t* values) {
  const int first = *std::min_element(gaze.first, gaze.first + gaze.count);
  const int last = *std::max_element(gaze.last, gaze.last + gaze.count);
  for (int q = 0; q < gaze.count; ++q) {
    room.most[q] = -std::numeric_limits<float>::infinity();
    room.mass[q] = 0.0f;
    std::fill(gaze.out[q], gaze.out[q] + gaze.head_dim, 0.0f);
  }
  for (int start = first / KEYS * KEYS; start <= last; start += KEYS) {
    const int count = std::min(KEYS, last + 1 - start);
    const uint16_t *k = keys + start * gaze.head_dim, *v = values + start * gaze.head_dim;
#if STOCKPOT_AVX512                              // elsewhere the processor foresees it
    const int64_t next = std::min(KEYS, last + 1 - start - KEYS) * gaze.head_dim;
    ask(k + KEYS * gaze.head_dim, next);
    ask(v + KEYS * gaze.head_dim, next);
#endif
    int q = 0;
    for (; q + TOGETHER <= gaze.count; q += TOGETHER) look<TOGETHER>(gaze, room, q, start, count, k, v);
    if (gaze.count - q == 2) look<2>(gaze, room, q, start, count, k, v);
    if (gaze.count - q == 1) look<1>(gaze, room, q, start, count, k, v);
  }
  for (int q = 0; q < gaze.count; ++q) {
    const Lanes share = fill(1.0f / room.mass[q]);
    for (int64_t d = 0; d < gaze.head_dim; d += LANES) store(gaze.out[q] + d, load(gaze.out[q] + d) * share);
  }
}

}  // namespace stockpot
