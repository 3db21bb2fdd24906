// Attention for training: scores, weights and averages of one head at a time, kept in the cache, with a backward pass that
// computes the weights again. Heads are taken out of the product of all of them and put back without a copy between.
//
// The right side of a product lies in panels of 32 columns, so that neighbours in depth are neighbours in memory. With bfloat16
// activations its sides are rounded to that type where the processor multiplies it (`training_pairs.hpp`), as torch's are.
//
// Sources: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; for the backward pass Dao et al. 2022, arXiv:2205.14135,
// appendix B.2.
#pragma once

#include <algorithm>
#include <vector>

#include "fetching.hpp"
#include "numbers.hpp"
#include "training_heads.hpp"
#include "training_pairs.hpp"

namespace stockpot {
namespace attention_detail {

constexpr int64_t BLOCK = 32;                // queries whose keys have one limit
constexpr int64_t AHEAD = 8;                 // rows that memory is asked for in advance
constexpr int64_t STRETCH = 4 * BLOCK;       // queries after which the slopes of keys and values are added to
// --- room, and how things lie in it ---

// The room one thread works in; grows to the largest head it has seen.
struct Room {
  std::vector<float> floats;
  float* get(int64_t count) {
    if (static_cast<int64_t>(floats.size()) < count) floats.resize(static_cast<size_t>(count));
    return floats.data();
  }
};
inline Room& room() {
  static thread_local Room own;
  return own;
}

template <class T> void widen_row(const T* from, float* to, int64_t dim, int64_t wide) {
#pragma omp simd
  for (int64_t i = 0; i < dim; ++i) to[i] = get(from[i]);
  for (int64_t i = dim; i < wide; ++i) to[i] = 0.0f;
}

template <class T> void narrow_row(const float* from, float by, T* to, int64_t dim) {
#pragma omp simd
  for (int64_t i = 0; i < dim; ++i) put(to[i], from[i] * by);
}

template <class T> float dot(const float* a, const T* b, int64_t dim) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < dim; ++i) sum += a[i] * get(b[i]);
  return sum;
}

// Opens a head of `count` positions into rows of `wide` numbers.
template <class T, class A>
void open_rows(const AttentionFacts& f, int64_t item, int64_t head, int64_t first, int64_t count, float* rows, int64_t wide) {
  const Head own(f, head);
  const T* x = static_cast<const T*>(f.qkv) + in_product(f, item, first, head);
  const int64_t step = (f.heads + 2 * f.kv_heads) * f.head_dim;
  for (int64_t row = 0; row < count; ++row, x += step) {
    const A* angle = own.is_value ? nullptr : angles_of<A>(f, item, first + row);
    float* out = rows + row * wide;
    ask(x + AHEAD * step, f.head_dim);
    open_head(x, own.gain, angle, f.rotary_dim / 2, own.by, f.eps, out, f.head_dim);
    std::fill(out + f.head_dim, out + wide, 0.0f);
  }
}

// The reverse for slopes.
template <class T, class A>
void close_rows(const AttentionFacts& f, int64_t item, int64_t head, int64_t first, int64_t count, float* rows, int64_t wide,
                float* gains) {
  const Head own(f, head);
  const int64_t step = (f.heads + 2 * f.kv_heads) * f.head_dim;
  for (int64_t row = 0; row < count; ++row) {
    const A* angle = own.is_value ? nullptr : angles_of<A>(f, item, first + row);
    const int64_t place = in_product(f, item, first + row, head);
    ask_to_write(static_cast<T*>(f.to_qkv) + place + AHEAD * step, f.head_dim);
    close_head(rows + row * wide, static_cast<const T*>(f.qkv) + place, own.gain, angle, f.rotary_dim / 2, own.by, f.eps,
               static_cast<T*>(f.to_qkv) + place, gains + (own.is_query ? 0 : f.head_dim), f.head_dim);
  }
}

// Where a head's part of the result, or of its slope, lies.
inline int64_t in_result(const AttentionFacts& f, int64_t item, int64_t position, int64_t head) {
  return ((item * f.seq + position) * f.heads + head) * f.head_dim;
}

// --- weights ---

inline const uint8_t* mask_row(const AttentionFacts& f, int64_t item, int64_t query) {
  if (!f.mask) return nullptr;
  const int64_t row = f.mask_rows == 1 ? 0 : item, viewer = f.mask_viewers == 1 ? 0 : query;
  return f.mask + (row * f.mask_viewers + viewer) * f.seq;
}

// The keys that a block of queries looks at: whole panels, but for the end of the sequence.
struct Range { int64_t from, to; };

inline bool is_seen(const AttentionFacts& f, int64_t item, int64_t start, int64_t rows, int64_t from, int64_t to) {
  for (int64_t row = 0; row < rows; ++row) {
    const uint8_t* seen = mask_row(f, item, start + row);
    if (std::any_of(seen + from, seen + to, [](uint8_t one) { return one != 0; })) return true;
  }
  return false;
}

inline Range range_of(const AttentionFacts& f, int64_t item, int64_t start, int64_t rows) {
  Range found{0, f.causal ? start + rows : f.seq};
  if (!f.mask) return found;
  while (found.from + PANEL < found.to && !is_seen(f, item, start, rows, found.from, found.from + PANEL)) found.from += PANEL;
  for (int64_t last; (last = (found.to - 1) / PANEL * PANEL) > found.from; found.to = last)
    if (is_seen(f, item, start, rows, last, found.to)) break;
  return found;
}

// Hides what a query must not see of a range: later keys, those that the mask names, and the padding. `row` begins at key 0.
inline void hide(const AttentionFacts& f, int64_t item, int64_t query, Range range, float* row) {
  const uint8_t* seen = mask_row(f, item, query);
  const int64_t keys = f.causal ? std::min(query + 1, range.to) : range.to;
  if (seen) {
#pragma omp simd
    for (int64_t j = range.from; j < keys; ++j) row[j] = seen[j] ? row[j] : -INFINITY;
  }
  for (int64_t j = std::max(keys, range.from); j < padded(range.to); ++j) row[j] = -INFINITY;
}

// Turns a row of scores, `wide` a multiple of LANE, into weights before they are divided by their sum: row `row` of a left side;
// what is hidden gets 0. Returns the log of the sum of e^score, and what to multiply with.
template <class W>
inline float weigh(float* scores, int64_t wide, int64_t row, typename W::Unit* left, float* share) {
  Lane tops = *reinterpret_cast<const Lane*>(scores);
  for (int64_t j = LANE; j < wide; j += LANE) {
    const Lane here = *reinterpret_cast<const Lane*>(scores + j);
    tops = here > tops ? here : tops;
  }
  float top = tops[0];
  for (int i = 1; i < LANE; ++i) top = std::max(top, tops[i]);
  const bool sees = top != -INFINITY;
  const float sum = W::raise(scores, wide, sees ? top : 0.0f, row, left);
  *share = sees ? 1.0f / sum : 0.0f;
  return sees ? top + std::log(sum) : INFINITY;
}

// --- one head ---

// What the queries of one head of keys and values share.
struct Sizes {
  int64_t dim, wide, keys, stride, group;    // wide, keys: padded; stride: of a row of scores, no power of two
  int64_t deep, length;                      // a head's numbers and the positions, in units of depth
  Sizes(const AttentionFacts& f, int64_t depth)
      : dim(f.head_dim), wide(padded(dim)), keys(padded(f.seq)), stride(keys + LANE), group(f.heads / f.kv_heads),
        deep((dim + depth - 1) / depth), length((f.seq + depth - 1) / depth) {}
};

template <class T, class A>
void attend_task(const AttentionFacts& f, int64_t item, int64_t kv) {
  using W = typename Held<T>::Way;
  using Unit = typename W::Unit;
  [[maybe_unused]] const typename W::Work held;
  const Sizes s(f, W::DEPTH);
  float* q = room().get(s.deep * s.keys + s.length * s.wide + BLOCK * (2 * s.wide + s.stride + s.keys + s.wide));
  float *out = q + BLOCK * s.wide, *scores = out + BLOCK * s.wide;
  Unit *turned = reinterpret_cast<Unit*>(scores + BLOCK * s.stride), *v = turned + s.deep * s.keys, *left = v + s.length * s.wide;
  for (int64_t start = 0; start < f.seq; start += BLOCK) {
    const int64_t rows = std::min(BLOCK, f.seq - start);
    open_rows<T, A>(f, item, f.heads + kv, start, rows, q, s.wide);
    const Left<Unit> keys = W::hold(q, rows, s.wide, s.wide, left);
    turn(keys.at, rows, keys.across, turned, s.deep, s.keys, start);
    open_rows<T, A>(f, item, f.heads + f.kv_heads + kv, start, rows, q, s.wide);
    to_panels<W>(q, rows, s.wide, v, s.length, start);
  }
  for (int64_t head = kv * s.group; head < (kv + 1) * s.group; ++head) {
    float* log_sums = f.log_sums + (item * f.heads + head) * f.seq;
    for (int64_t start = 0; start < f.seq; start += BLOCK) {
      const int64_t rows = std::min(BLOCK, f.seq - start);
      const Range range = range_of(f, item, start, rows);
      const int64_t from = range.from, wide = padded(range.to) - from;
      float shares[BLOCK];
      open_rows<T, A>(f, item, head, start, rows, q, s.wide);
      const Left<Unit> queries = W::hold(q, rows, s.wide, s.wide, left);
      multiply<W, false>(queries.at, queries.across, 1, turned + from * s.deep, s.deep, scores + from, s.stride, rows, wide,
                         s.deep);
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t query = start + row;
        ask(static_cast<const T*>(f.qkv) + in_product(f, item, query + BLOCK, head), s.dim);
        ask_to_write(static_cast<T*>(f.mixed) + in_result(f, item, query, head), s.dim);
        hide(f, item, query, range, scores + row * s.stride);
        log_sums[query] = weigh<W>(scores + row * s.stride + from, wide, row, left, shares + row);
      }
      const Left<Unit> weights = W::raised(scores + from, s.stride, wide, left);
      multiply<W, false>(weights.at, weights.across, 1, v, s.length, out, s.wide, rows, s.wide,
                         (range.to - from + W::DEPTH - 1) / W::DEPTH, from / W::DEPTH);
      for (int64_t row = 0; row < rows; ++row) {
        T* to = static_cast<T*>(f.mixed) + in_result(f, item, start + row, head);
        narrow_row(out + row * s.wide, shares[row], to, s.dim);
      }
    }
  }
}

// What one task of the way back works with. The slopes of keys and values add up over queries, whose pairs are a product's depth:
// in vectors their rows are positions; with tiles, which want such pairs on the right, positions are columns.
template <class T, class A> struct BackTask {
  using W = typename Held<T>::Way;
  using Unit = typename W::Unit;
  static constexpr int64_t DEEP = STRETCH / W::DEPTH;  // a stretch in units
  const AttentionFacts& f;
  const Sizes s;
  const int64_t item, kv, plane;
  const bool has_tiles = W::has_tiles();
  float *to_k, *to_v, *rows_q, *rows_slope, *part, *block_score, *block_slope;
  Unit *k, *k_turned, *v_turned, *q, *slope;  // in panels, the last two of a stretch
  Unit *q_turned, *slope_turned;             // of a stretch: (wide, DEEP)
  Unit *weights, *scores, *left;             // weights and the scores' slopes of a stretch, by query; a left side

  BackTask(const AttentionFacts& facts, int64_t of_item, int64_t of_kv)
      : f(facts), s(facts, W::DEPTH), item(of_item), kv(of_kv), plane(s.wide * std::max(f.seq + 1, s.keys)) {
    to_k = room().get(5 * plane + STRETCH * (4 * s.wide + 2 * s.stride) + BLOCK * (4 * s.wide + 2 * PANEL + s.keys));
    to_v = to_k + plane, rows_q = to_v + plane, rows_slope = rows_q + BLOCK * s.wide, part = rows_slope + BLOCK * s.wide;
    block_score = part + BLOCK * s.wide, block_slope = block_score + BLOCK * PANEL;
    k = reinterpret_cast<Unit*>(block_slope + BLOCK * PANEL), k_turned = k + plane, v_turned = k_turned + plane;
    q = v_turned + plane, slope = q + STRETCH * s.wide, q_turned = slope + STRETCH * s.wide;
    slope_turned = q_turned + STRETCH * s.wide, weights = slope_turned + STRETCH * s.wide;
    scores = weights + STRETCH * s.stride, left = scores + STRETCH * s.stride;
  }

  void run(float* gains) {
    [[maybe_unused]] const typename W::Work held;
    for (int64_t start = 0; start < f.seq; start += BLOCK) {
      const int64_t rows = std::min(BLOCK, f.seq - start);
      open_rows<T, A>(f, item, f.heads + kv, start, rows, rows_q, s.wide);
      to_panels<W>(rows_q, rows, s.wide, k, s.length, start);
      const Left<Unit> keys = W::hold(rows_q, rows, s.wide, s.wide, left);
      turn(keys.at, rows, keys.across, k_turned, s.deep, s.keys, start);
      open_rows<T, A>(f, item, f.heads + f.kv_heads + kv, start, rows, rows_q, s.wide);
      const Left<Unit> values = W::hold(rows_q, rows, s.wide, s.wide, left);
      turn(values.at, rows, values.across, v_turned, s.deep, s.keys, start);
    }
    std::fill(to_k, to_k + 2 * plane, 0.0f);
    for (int64_t head = kv * s.group; head < (kv + 1) * s.group; ++head)
      for (int64_t begin = 0; begin < f.seq; begin += STRETCH) {
        const int64_t end = std::min(begin + STRETCH, f.seq);
        Range seen{f.seq, 0};
        for (int64_t start = begin; start < end; start += BLOCK) {
          const Range own = range_of(f, item, start, std::min(BLOCK, end - start));
          seen = {std::min(seen.from, own.from), std::max(seen.to, own.to)};
        }
        for (int64_t start = begin; start < end; start += BLOCK)
          queries(head, begin, start, std::min(BLOCK, end - start), seen, gains);
        if (has_tiles) by_columns(begin, end, seen);
        else by_rows(begin, end, seen);
      }
    close_rows<T, A>(f, item, f.heads + kv, 0, f.seq, in_rows(to_k), s.wide, gains);
    close_rows<T, A>(f, item, f.heads + f.kv_heads + kv, 0, f.seq, in_rows(to_v), s.wide, gains);
  }

  // Weights, the scores' slopes and the queries' of one block of a stretch that begins at `begin` and looks at `all`.
  void queries(int64_t head, int64_t begin, int64_t start, int64_t rows, Range all, float* gains) {
    const Range range = range_of(f, item, start, rows);
    const int64_t from = range.from, to = padded(range.to), at = start - begin, own = at / W::DEPTH * s.stride;
    open_rows<T, A>(f, item, head, start, rows, rows_q, s.wide);
    to_panels<W>(rows_q, rows, s.wide, q, DEEP, at);
    float along[BLOCK];
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t place = in_result(f, item, start + row, head);
      widen_row(static_cast<const T*>(f.slope) + place, rows_slope + row * s.wide, s.dim, s.wide);
      along[row] = dot(rows_slope + row * s.wide, static_cast<const T*>(f.mixed) + place, s.dim);
      ask_for_next(start + row + BLOCK, head);
      ask_to_write(static_cast<T*>(f.to_qkv) + in_product(f, item, start + row, head), s.dim);
    }
    to_panels<W>(rows_slope, rows, s.wide, slope, DEEP, at);
    const Left<Unit> queries = W::hold(rows_q, rows, s.wide, s.wide, left);
    const Left<Unit> rises = W::hold(rows_slope, rows, s.wide, s.wide, left + BLOCK * s.wide / W::DEPTH);
    Unit* slopes = left + 2 * BLOCK * s.wide / W::DEPTH;
    const int64_t across = (to - from) / W::DEPTH;
    for (int64_t j = from; j < to; j += PANEL) {
      const int64_t wide = std::min(PANEL, to - j);
      multiply<W, false>(queries.at, queries.across, 1, k_turned + j * s.deep, s.deep, block_score, PANEL, rows, wide, s.deep);
      multiply<W, false>(rises.at, rises.across, 1, v_turned + j * s.deep, s.deep, block_slope, PANEL, rows, wide, s.deep);
      for (int64_t row = 0; row < rows; ++row)
        hide(f, item, start + row, {j, std::min(j + wide, range.to)}, block_score + row * PANEL - j);
      const Scores block{block_score, block_slope, f.log_sums + (item * f.heads + head) * f.seq + start, along, rows, wide};
      W::settle(block, weights + own + j, scores + own + j, s.stride, slopes + (j - from) / W::DEPTH, across);
    }
    for (int64_t row = 0; row < rows; row += W::DEPTH)
      for (Unit* line : {weights + own + row / W::DEPTH * s.stride, scores + own + row / W::DEPTH * s.stride}) {
        std::fill(line + all.from, line + from, Unit{});
        std::fill(line + to, line + std::max(to, padded(all.to)), Unit{});
      }
    const Left<Unit> moved = W::raised(scores + own + from, s.stride, to - from, slopes);
    multiply<W, false>(moved.at, moved.across, 1, k, s.length, part, s.wide, rows, s.wide,
                       (range.to - from + W::DEPTH - 1) / W::DEPTH, from / W::DEPTH);
    close_rows<T, A>(f, item, head, start, rows, part, s.wide, gains);
  }

  // What a query of the next block will need: rows lie so far apart that the processor does not guess the next one.
  STOCKPOT_ASKING void ask_for_next(int64_t query, int64_t head) const {
    const int64_t place = in_result(f, item, query, head);
    ask(static_cast<const T*>(f.qkv) + in_product(f, item, query, head), s.dim);
    ask(static_cast<const T*>(f.slope) + place, s.dim);
    ask(static_cast<const T*>(f.mixed) + place, s.dim);
  }

  // What keys and values get from a stretch of queries, where their positions are rows.
  void by_rows(int64_t begin, int64_t end, Range seen) {
    for (int64_t start = seen.from; start < seen.to; start += BLOCK) {
      const int64_t rows = std::min(BLOCK, f.seq - start), from = f.causal ? std::max(start - begin, int64_t{0}) : 0;
      const int64_t depth = (end - begin - from + W::DEPTH - 1) / W::DEPTH, first = from / W::DEPTH;
      const int64_t column = first * s.stride + start;
      multiply<W, true>(scores + column, 1, s.stride, q, DEEP, to_k + start * s.wide, s.wide, rows, s.wide, depth, first);
      multiply<W, true>(weights + column, 1, s.stride, slope, DEEP, to_v + start * s.wide, s.wide, rows, s.wide, depth, first);
    }
  }

  // The same where their positions are columns.
  void by_columns([[maybe_unused]] int64_t begin, [[maybe_unused]] int64_t end, [[maybe_unused]] Range seen) {
#if STOCKPOT_PAIR_TILES
    if constexpr (W::DEPTH == 2) {
      const int64_t pairs = (end - begin + 1) / 2, deep = (pairs + SIDE - 1) / SIDE * SIDE, until = padded(seen.to);
      for (int64_t row = pairs; row < deep; ++row)  // what fills the last tile counts nothing
        for (Unit* line : {weights + row * s.stride, scores + row * s.stride}) std::fill(line + seen.from, line + until, Unit{});
      turn_panels(q, pairs, deep, q_turned);
      turn_panels(slope, pairs, deep, slope_turned);
      for (int64_t start = seen.from; start < until; start += BLOCK) {
        const int64_t wide = std::min(BLOCK, until - start), first = f.causal ? std::max(start - begin, int64_t{0}) / 2 : 0;
        const int64_t column = first * s.stride + start;
        multiply_tiles<true>(q_turned + first, DEEP, scores + column, s.stride, to_k + start, s.keys, s.wide, wide, deep - first);
        multiply_tiles<true>(slope_turned + first, DEEP, weights + column, s.stride, to_v + start, s.keys, s.wide, wide, deep - first);
      }
    }
#endif
  }

#if STOCKPOT_PAIR_TILES
  // Panels of a stretch, of which `pairs` rows are filled, to (wide, DEEP) with zeros up to `deep`.
  void turn_panels(Unit* panels, int64_t pairs, int64_t deep, Unit* out) const {
    for (int64_t j = 0; j < s.wide; j += PANEL) {
      const int64_t width = std::min(PANEL, s.wide - j);
      Unit* panel = panels + j * DEEP;
      std::fill(panel + pairs * width, panel + deep * width, Unit{});
      for (int64_t row = 0; row < deep; row += SIDE)
        for (int64_t i = 0; i < width; i += SIDE) turn_square(panel + row * width + i, width, out + (j + i) * DEEP + row, DEEP);
    }
  }
#endif

  // The slopes of keys or values with a row for each position; uses up the keys' panels.
  float* in_rows(float* slopes) {
#if STOCKPOT_PAIR_TILES
    if (has_tiles) {
      float* rows = reinterpret_cast<float*>(k);
      for (int64_t i = 0; i < s.wide; i += SIDE)
        for (int64_t j = 0; j < s.keys; j += SIDE) turn_square(slopes + i * s.keys + j, s.keys, rows + j * s.wide + i, s.wide);
      return rows;
    }
#endif
    return slopes;
  }
};

}  // namespace attention_detail

template <class T, class A> void attend(const AttentionFacts& f) {
#pragma omp parallel for num_threads(static_cast<int>(f.threads)) schedule(dynamic) if (f.threads > 1)
  for (int64_t task = 0; task < f.batch * f.kv_heads; ++task)
    attention_detail::attend_task<T, A>(f, task / f.kv_heads, task % f.kv_heads);
}

template <class T, class A> void attend_back(const AttentionFacts& f) {
  const int64_t tasks = f.batch * f.kv_heads;
  std::vector<float> sums(static_cast<size_t>(tasks * 2 * f.head_dim), 0.0f);
#pragma omp parallel for num_threads(static_cast<int>(f.threads)) schedule(dynamic) if (f.threads > 1)
  for (int64_t task = 0; task < tasks; ++task)
    attention_detail::BackTask<T, A>(f, task / f.kv_heads, task % f.kv_heads).run(sums.data() + task * 2 * f.head_dim);
  add_gains(f, sums, tasks);
}

}  // namespace stockpot
