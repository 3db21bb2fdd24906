// Products of the rows of some texts with a model's matrices, in floats or in whole numbers of 16 bits.
//
// A matrix is read in panels of PANEL outputs, depth by depth, in one sweep. Those who run few rows at a time lay them out once;
// else each is made of the weights as they are when it is needed, which many rows hardly notice. Of whole numbers, each span of a
// row and of an output has its own factor, chosen by length: |sum x w| <= |x| |w| (Cauchy-Schwarz), so that no sum can leave
// 32 bits and hardly a digit is given away. They cost half of floats where the processor adds two products at once.
#pragma once

#include <algorithm>

#include "stored.hpp"
#include "team.hpp"

namespace stockpot {

constexpr int64_t SPAN = 64;                 // inputs that share a factor
constexpr float LENGTH = 46300.0f;           // of a span's digits: rounded ones stay below 46340, whose square is 2^31
constexpr float LARGEST = 32767.0f;

#if STOCKPOT_AVX512
constexpr int TALL = 12, BROAD = 2;          // rows and vectors of a tile: what the registers hold
constexpr bool HAS_PAIRS = true;             // two products at once
constexpr bool IS_FAST = true;               // than what torch has
#elif STOCKPOT_AVX2
constexpr int TALL = 6, BROAD = 1;
constexpr bool HAS_PAIRS = false;
constexpr bool IS_FAST = true;
#else
constexpr int TALL = 4, BROAD = 1;
constexpr bool HAS_PAIRS = false;
constexpr bool IS_FAST = false;
#endif
constexpr int64_t PANEL = BROAD * LANES;

struct Matrix {
  const uint8_t* weight;                     // (outputs, inputs), stored as `type` says; read where there are no panels
  int64_t type;
  const void* panels;                        // (panels, inputs, PANEL) floats, or (panels, inputs / 2, PANEL, 2) digits, or null
  const float* scales;                       // (panels, spans, PANEL): what a digit is worth; null: floats
  const float* bias;                         // (outputs), or null
  int64_t outputs, inputs;                   // multiples of 16; of a head only the inputs

  int64_t spans() const { return (inputs + SPAN - 1) / SPAN; }
  int64_t count() const { return (outputs + PANEL - 1) / PANEL; }
};

// Rows to multiply: floats, or digits with their factors.
struct Rows {
  const float* floats;
  const int16_t* digits;
  const float* scales;                       // (rows, spans)
  int64_t step, spans;                       // from a row to the next
};

// Fill the registers' tile: rows of `a`, each `step` apart, times BROAD or fewer vectors of each line of `b`.
template <int ROWS, int WIDE>
STOCKPOT_APART void float_tile(const float* a, int64_t step, const float* b, int64_t line, int64_t depth, float* out) {
  Lanes sums[ROWS][WIDE];
  const float* rows[(ROWS + 2) / 3];         // every third row has a pointer: the processor can add one and two steps
  for (int r = 0; r < ROWS; ++r) {
    rows[r / 3] = a + r / 3 * 3 * step;
    for (int j = 0; j < WIDE; ++j) sums[r][j] = fill(0.0f);
  }
  for (int64_t k = 0; k < depth; ++k, b += line) {
    Lanes right[WIDE];
    for (int j = 0; j < WIDE; ++j) right[j] = load(b + j * LANES);
    STOCKPOT_UNROLL(12)
    for (int r = 0; r < ROWS; ++r) {
      const Lanes left = fill(rows[r / 3][k + r % 3 * step]);
      STOCKPOT_UNROLL(2)
      for (int j = 0; j < WIDE; ++j) sums[r][j] = fma(left, right[j], sums[r][j]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int j = 0; j < WIDE; ++j) store(out + (r * BROAD + j) * LANES, sums[r][j]);
}

// The same for pairs of digits, within one span: sums that are added to `out`, times what they are worth.
template <int ROWS>
STOCKPOT_APART void pair_span(const int16_t* a, int64_t step, const int16_t* b, int64_t depth, const float* factors,
                              int64_t spans, const float* worth, float* out) {
  Sums sums[ROWS][BROAD];
  const int16_t* rows[(ROWS + 2) / 3];
  STOCKPOT_UNROLL(12)
  for (int r = 0; r < ROWS; ++r) {
    rows[r / 3] = a + r / 3 * 3 * step;
    for (int j = 0; j < BROAD; ++j) sums[r][j] = fill_sums(0);
  }
  int64_t k = 0;
  do {                                       // never empty: told so, the compiler keeps the sums where they are
    Digits right[BROAD];
    for (int j = 0; j < BROAD; ++j) right[j] = load_digits(b + j * 2 * LANES);
    STOCKPOT_UNROLL(12)
    for (int r = 0; r < ROWS; ++r) {
      const Digits left = fill_pairs(rows[r / 3] + k + r % 3 * step);
      STOCKPOT_UNROLL(2)
      for (int j = 0; j < BROAD; ++j) sums[r][j] = add_pairs(sums[r][j], right[j], left);
    }
    k += 2, b += 2 * PANEL;
  } while (k < depth);
  STOCKPOT_UNROLL(12)
  for (int r = 0; r < ROWS; ++r)
    STOCKPOT_UNROLL(2)
    for (int j = 0; j < BROAD; ++j, out += LANES)
      store(out, fma(as_float(sums[r][j]), fill(factors[r * spans]) * load(worth + j * LANES), load(out)));
}

template <int ROWS>
inline void pair_tile(const Rows& in, int64_t row, const int16_t* b, const float* worth, int64_t depth, float* out) {
  const int16_t* a = in.digits + row * in.step;
  const float* factors = in.scales + row * in.spans;
  std::fill(out, out + ROWS * PANEL, 0.0f);
  for (int64_t from = 0; from < depth; from += SPAN, worth += PANEL, ++factors)
    pair_span<ROWS>(a + from, in.step, b + from * PANEL, std::min(SPAN, depth - from), factors, in.spans, worth, out);
}

// Both for any number of rows up to TALL.
template <int ROWS, int WIDE>
inline void float_tile_of(int rows, const float* a, int64_t step, const float* b, int64_t line, int64_t depth, float* out) {
  if (rows == ROWS) float_tile<ROWS, WIDE>(a, step, b, line, depth, out);
  else if constexpr (ROWS > 1) float_tile_of<ROWS - 1, WIDE>(rows, a, step, b, line, depth, out);
}
template <int ROWS>
inline void pair_tile_of(int rows, const Rows& in, int64_t row, const int16_t* b, const float* scales, int64_t depth, float* out) {
  if (rows == ROWS) pair_tile<ROWS>(in, row, b, scales, depth, out);
  else if constexpr (ROWS > 1) pair_tile_of<ROWS - 1>(rows, in, row, b, scales, depth, out);
}

// Rows that do not fill a tile are shared out, so that no tile is much lower than the others.
struct Heights {
  int64_t rows, tiles;
  explicit Heights(int64_t count) : rows(count), tiles((count + TALL - 1) / TALL) {}
  int64_t begin(int64_t tile) const { return rows * tile / tiles; }
  int height(int64_t tile) const { return int(begin(tile + 1) - begin(tile)); }
};

// Who computes something: this thread alone, or all members of a team side by side.
struct Crew {
  Team* team;                                // null: alone

  template <class F> void each(int64_t count, F&& f) const {
    if (!team) {
      for (int64_t i = 0; i < count; ++i) f(i);
      return;
    }
    for (int i; (i = team->take(int(count))) >= 0;) f(i);
    team->meet();
  }
};

constexpr int64_t AHEAD = 2;                 // panels whose weights are fetched meanwhile

// One panel's floats from the weights as they are: (inputs, PANEL), 0 where there is no output.
inline void lay_out(const Matrix& m, int64_t panel, float* to) {
  alignas(64) float block[LANES * LANES] = {};
  for (int64_t j = 0; j < PANEL; j += LANES) {
    const int64_t first = panel * PANEL + j, there = std::clamp<int64_t>(m.outputs - first, 0, LANES);
    const int64_t later = std::clamp<int64_t>(m.outputs - LANES, 0, first + AHEAD * PANEL);
    const From from = From{m.weight, m.type} + first * m.inputs, next = From{m.weight, m.type} + later * m.inputs;
    for (int64_t k = 0; k < m.inputs; k += LANES) {
      float* out = to + k * PANEL + j;
      ask_for(next + k * LANES, LANES * LANES);
      if (there == LANES && m.type == FLOATS) {
        turn(floats(from) + k, m.inputs, out, PANEL);
        continue;
      }
      for (int64_t i = 0; i < there; ++i) store(block + i * LANES, load(from + (i * m.inputs + k)));
      turn(block, LANES, out, PANEL);
    }
  }
}

// Multiply `count` rows with one panel and hand every tile to put(first row, rows, results (rows, PANEL)).
template <class Put>
inline void multiply_panel(const Matrix& m, int64_t panel, const Rows& in, int64_t count, float* room, Put&& put) {
  alignas(64) float out[TALL * PANEL];
  const float* floats = m.panels ? static_cast<const float*>(m.panels) + panel * m.inputs * PANEL : room;
  if (!m.panels) lay_out(m, panel, room);
  const Heights heights(count);
  for (int64_t tile = 0; tile < heights.tiles; ++tile) {
    const int64_t row = heights.begin(tile);
    const int rows = heights.height(tile);
    if (m.scales) {
      const int16_t* b = static_cast<const int16_t*>(m.panels) + panel * m.inputs * PANEL;
      pair_tile_of<TALL>(rows, in, row, b, m.scales + panel * m.spans() * PANEL, m.inputs, out);
    } else {
      float_tile_of<TALL, BROAD>(rows, in.floats + row * in.step, in.step, floats, PANEL, m.inputs, out);
    }
    put(row, rows, out);
  }
}

// Multiply `count` rows and hand every 16 results, bias added, to put(row, output, results).
template <class Put>
inline void multiply(const Matrix& m, const Rows& in, int64_t count, const Crew& crew, float* room, Put&& put) {
  crew.each(m.count(), [&](int64_t panel) {
    const int64_t vectors = std::min<int64_t>(BROAD, (m.outputs - panel * PANEL) / LANES);
    multiply_panel(m, panel, in, count, room, [&](int64_t row, int rows, const float* out) {
      for (int64_t j = 0; j < vectors; ++j) {
        const int64_t output = panel * PANEL + j * LANES;
        const Lanes bias = m.bias ? load(m.bias + output) : fill(0.0f);
        for (int r = 0; r < rows; ++r) put(row + r, output, load(out + (r * BROAD + j) * LANES) + bias);
      }
    });
  });
}

// --- to whole numbers ---

// What a span of `count` numbers, a multiple of 16, is multiplied with; 0 if all are 0, not a number if one is not.
inline float factor_of(const float* numbers, int64_t count) {
  Lanes squares = fill(0.0f), top = fill(0.0f);
  for (int64_t i = 0; i < count; i += LANES) {
    const Lanes x = load(numbers + i);
    squares = fma(x, x, squares);
    top = larger(top, size_of(x));
  }
  const float most = largest(top), length = std::sqrt(sum(squares));
  if (!(length < INFINITY)) return NAN;
  if (most < 1e-30f) return 0.0f;            // squares of less would vanish, and so would a product
  return std::min(LENGTH / length, LARGEST / most);
}

// A row, whose `count` is a multiple of 16.
inline void to_digits(const float* row, int64_t count, int16_t* digits, float* scales) {
  for (int64_t from = 0; from < count; from += SPAN, ++scales) {
    const int64_t some = std::min(SPAN, count - from);
    const float by = factor_of(row + from, some);
    for (int64_t i = from; i < from + some; i += LANES) store_digits(digits + i, load(row + i) * fill(by));
    *scales = by == 0.0f ? 0.0f : 1.0f / by;
  }
}

// Weights into one panel that is kept.
inline void pack_floats(const Matrix& m, int64_t panel) {
  lay_out(m, panel, static_cast<float*>(const_cast<void*>(m.panels)) + panel * m.inputs * PANEL);
}

inline void pack_pairs(const Matrix& m, int64_t panel) {
  int16_t* to = static_cast<int16_t*>(const_cast<void*>(m.panels)) + panel * m.inputs * PANEL;
  float* scales = const_cast<float*>(m.scales) + panel * m.spans() * PANEL;
  int16_t digits[SPAN];
  for (int64_t j = 0; j < PANEL; ++j) {
    const int64_t output = panel * PANEL + j;
    for (int64_t from = 0, span = 0; from < m.inputs; from += SPAN, ++span) {
      const int64_t some = std::min(SPAN, m.inputs - from);
      float scale = 0.0f;
      std::fill(digits, digits + SPAN, int16_t(0));
      if (output < m.outputs) to_digits(floats({m.weight, FLOATS}) + output * m.inputs + from, some, digits, &scale);
      scales[span * PANEL + j] = scale;
      for (int64_t k = 0; k < some; ++k) to[(from + k) / 2 * 2 * PANEL + 2 * j + k % 2] = digits[k];
    }
  }
}

}  // namespace stockpot
