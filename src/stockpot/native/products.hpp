// Products of whole numbers: weights of 8 bits with inputs of 16, weights of 4 bits with inputs of 8.
//
// Sums of products are exact, and what is left to rounding happens in one order. So a row's result does not depend on how
// many rows are computed together, on the number of threads, or on the processor.
#pragma once

#include <algorithm>

#include "lanes.hpp"
#include "tiles.hpp"

namespace stockpot {

constexpr int WIDE_SPAN = 64, NARROW_SPAN = 32;  // inputs that share a scale, for weights of 8 and of 4 bits
constexpr int WIDE_INPUT = 32767, NARROW_INPUT = 127;  // largest digits of inputs: 64 * 255 * 32767 < 2^31

// outputs x inputs, in blocks of 16 outputs with one scale a span and output. A block's digits follow each other in the
// order of inputs, in lines of 64 bytes:
//   8 bits  four inputs: 32 numbers of 16 bits, two for each output, that hold inputs (0, 2) and (1, 3);
//   4 bits  eight inputs: 64 bytes, four for each output, that hold inputs (0, 4), (1, 5), (2, 6) and (3, 7).
// weight = gain * (scale * (digit - offset) + low); lows exist with 4 bits, an offset with 8.
struct Matrix {
  const uint8_t* digits;
  const uint16_t* scales;                    // (blocks, spans, 16) halves
  const uint16_t* lows;                      // the same; null with 8 bits
  int64_t outputs, inputs;                   // multiples of 16 and of the span
  int64_t bits;
  double gain;                               // a power of two, so that halves can hold scales of any size

  int span() const { return bits == 8 ? WIDE_SPAN : NARROW_SPAN; }
  int blocks() const { return int(outputs / LANES); }
  int64_t spans() const { return inputs / span(); }
  const uint8_t* block(int64_t index) const { return digits + index * inputs * LANES * bits / 8; }
};

// Rows of inputs as whole numbers. For weights of 8 bits: int16, one scale a row. Of 4: int8, one scale a span.
struct Inputs {
  const int8_t* digits;                      // (rows, stride) bytes
  const float* scales;                       // (rows, spans)
  const int32_t* sums;                       // (rows, spans) digits summed over each span (8 bits)
  const float* masses;                       // (rows, spans) inputs summed over each span (4 bits)
  int64_t stride, spans, spans_used;         // the last: those this matrix has
  bool tiled;                                // wide digits as high and low bytes, 64 of each in turn

  const int16_t* wide(int64_t row) const { return reinterpret_cast<const int16_t*>(digits + row * stride); }
  const int8_t* narrow(int64_t row) const { return digits + row * stride; }
};

// Where one row's inputs are written.
struct InputRow {
  int8_t* digits;
  float* scales;
  int32_t* sums;
  float* masses;
};

inline float top_of(const float* row, int64_t count) {
  Lanes most = fill(0.0f);
  for (int64_t i = 0; i < count; i += LANES) most = larger(most, size_of(load(row + i)));
  return largest(most);
}

inline void make_wide(const float* row, int64_t count, int64_t padded, bool tiled, const InputRow& out) {
  const float top = top_of(row, count);
  out.scales[0] = top / WIDE_INPUT;
  const Lanes factor = fill(top > 0 ? WIDE_INPUT / top : 0.0f);
  int16_t apart[WIDE_SPAN];
  for (int64_t s = 0; s < padded / WIDE_SPAN; ++s) {
    const int64_t from = s * WIDE_SPAN, present = std::clamp<int64_t>(count - from, 0, WIDE_SPAN);
    int16_t* digits = tiled ? apart : reinterpret_cast<int16_t*>(out.digits) + from;
    for (int64_t i = 0; i < present; i += LANES) store_digits(digits + i, load(row + from + i) * factor);
    std::fill(digits + present, digits + WIDE_SPAN, int16_t(0));
    int32_t total = 0;
    for (int i = 0; i < WIDE_SPAN; ++i) total += digits[i];
    out.sums[s] = total;
    if (tiled) split_span(apart, out.digits + 2 * from);
  }
}

inline void make_narrow(const float* row, int64_t count, int64_t padded, const InputRow& out) {
  std::fill(out.digits + count, out.digits + padded, int8_t(0));
  for (int64_t s = 0; s < padded / NARROW_SPAN; ++s) {
    const int64_t from = s * NARROW_SPAN, present = std::clamp<int64_t>(count - from, 0, NARROW_SPAN);
    const float top = top_of(row + from, present);
    const Lanes factor = fill(top > 0 ? NARROW_INPUT / top : 0.0f);
    for (int64_t i = from; i < from + present; i += LANES) store_bytes(out.digits + i, load(row + i) * factor);
    int32_t total = 0;
    for (int i = 0; i < NARROW_SPAN; ++i) total += out.digits[from + i];
    out.scales[s] = top / NARROW_INPUT;
    out.masses[s] = out.scales[s] * float(total);
  }
}

// Turn a row of floats, `count` of them a multiple of 16, into inputs of a matrix.
inline void make_inputs(const float* row, int64_t count, const Matrix& m, bool tiled, const InputRow& out) {
  if (m.bits == 8) make_wide(row, count, m.inputs, tiled, out);
  else make_narrow(row, count, m.inputs, out);
}

// The digits of one line: pairs of inputs as 16-bit numbers, or fours of inputs as bytes.
struct Halved { Digits first, second; };
inline Halved halved_wide(const uint8_t* line) {
  const Digits d = load_digits(line);
  return {low_bits(d, 0x00ff), shifted<8>(d)};
}
inline Halved halved_narrow(const uint8_t* line) {
  const Digits d = load_digits(line);
  return {low_bits(d, 0x0f0f), low_bits(shifted<4>(d), 0x0f0f)};
}

// --- one row ---

inline Lanes wide_span(const uint8_t* line, const int16_t* x, int32_t sum) {
  Sums even = fill_sums(-128 * sum), odd = fill_sums(0);
  for (int64_t i = 0; i < WIDE_SPAN; i += 4, line += LINE) {
    const Halved w = halved_wide(line);
    even = add_products(even, w.first, x + i);
    odd = add_products(odd, w.second, x + i + 2);
  }
  return as_float(even + odd);
}

inline Lanes narrow_span(const uint8_t* line, const int8_t* x) {
  Partial sums = no_partial();
  for (int64_t i = 0; i < NARROW_SPAN; i += 8, line += LINE) {
    const Halved w = halved_narrow(line);
    sums = add_products(sums, w.first, x + i);
    sums = add_products(sums, w.second, x + i + 4);
  }
  return as_float(widened(sums));
}

STOCKPOT_APART inline void multiply_row(const Matrix& m, int64_t block, const Inputs& in, float* out) {
  const uint8_t* line = m.block(block);
  const uint16_t *scales = m.scales + block * m.spans() * LANES, *lows = m.lows + block * m.spans() * LANES;
  Lanes total = fill(0.0f);
  if (m.bits == 8) {
    for (int64_t s = 0; s < m.spans(); ++s, line += LINE * WIDE_SPAN / 4)
      total = fma(wide_span(line, in.wide(0) + s * WIDE_SPAN, in.sums[s]), load_half(scales + s * LANES), total);
    total = total * fill(in.scales[0]);
  } else {
    for (int64_t s = 0; s < m.spans(); ++s, line += LINE * NARROW_SPAN / 8) {
      const Lanes sums = narrow_span(line, in.narrow(0) + s * NARROW_SPAN);
      total = fma(sums, load_half(scales + s * LANES) * fill(in.scales[s]), total);
      total = fma(load_half(lows + s * LANES), fill(in.masses[s]), total);
    }
  }
  store(out, total * fill(float(m.gain)));
}

// --- many rows ---

// A block as many rows look at it. Where registers hold many rows, digits are unpacked for each of them anew, which costs nothing
// beside so many products; elsewhere that is done beforehand.
struct Panel {
  const Matrix& m;
  const int64_t block;
  const uint8_t* lines;
#if STOCKPOT_AVX512
  const int64_t place;                       // of the block's scales and lows

  Panel(const Matrix& matrix, int64_t index, uint8_t*)
      : m(matrix), block(index), lines(m.block(index)), place(index * m.spans() * LANES) {}
  static constexpr int64_t HALVES = 2;       // of digits that are packed in a line
  template <int BITS, class F> static void take(const uint8_t* line, int64_t input, F&& each) {
    const Halved w = BITS == 8 ? halved_wide(line) : halved_narrow(line);
    each(w.first, input);
    each(w.second, input + 16 / BITS);
  }
  Lanes scale(int64_t span) const { return load_half(m.scales + place + span * LANES); }
  Lanes low(int64_t span) const { return load_half(m.lows + place + span * LANES); }
#else
  const float *scales, *lows;                // (spans, 16)

  Panel(const Matrix& matrix, int64_t index, uint8_t* room) : m(matrix), block(index), lines(room) {
    const uint8_t* end = m.block(index + 1);
    for (const uint8_t* line = m.block(index); line < end; line += LINE, room += 2 * LINE) {
      const Halved w = m.bits == 8 ? halved_wide(line) : halved_narrow(line);
      store_line(room, w.first);
      store_line(room + LINE, w.second);
    }
    float* out = reinterpret_cast<float*>(room);
    scales = out, lows = out + m.spans() * LANES;
    for (int64_t i = 0; i < m.spans() * LANES; i += LANES) {
      store(out + i, load_half(m.scales + index * m.spans() * LANES + i));
      if (m.lows) store(out + m.spans() * LANES + i, load_half(m.lows + index * m.spans() * LANES + i));
    }
  }
  static constexpr int64_t HALVES = 1;
  template <int BITS, class F> static void take(const uint8_t* line, int64_t input, F&& each) { each(load_digits(line), input); }
  Lanes scale(int64_t span) const { return load(scales + span * LANES); }
  Lanes low(int64_t span) const { return load(lows + span * LANES); }
#endif

  // Let the digits, scales and lows of a span of the block behind be fetched.
  template <int BITS> STOCKPOT_ASKING void ask_for_next(int64_t span) const {
    constexpr int64_t BYTES = (BITS == 8 ? WIDE_SPAN : NARROW_SPAN) * LANES * BITS / 8;
    const int64_t place = ((block + 1) * m.spans() + span) * LANES;
    ask_for_lines<BYTES>(m.block(block + 1) + span * BYTES);
    ask_for_line(m.scales + place);
    if (BITS == 4) ask_for_line(m.lows + place);
  }
};

template <int ROWS> STOCKPOT_APART void wide_tile(const Panel& panel, const Inputs& in, int64_t row, float* out) {
  const int16_t* x[ROWS];
  Lanes totals[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    x[r] = in.wide(row + r);
    totals[r] = fill(0.0f);
  }
  const uint8_t* line = panel.lines;
  const int32_t* sums = in.sums + row * in.spans;
  for (int64_t s = 0; s < in.spans_used; ++s, ++sums) {
    Sums parts[ROWS];
    for (int r = 0; r < ROWS; ++r) parts[r] = fill_sums(-128 * sums[r * in.spans]);
    STOCKPOT_UNROLL(4)
    for (int64_t i = 0; i < WIDE_SPAN; i += 2 * Panel::HALVES, line += LINE)
      Panel::take<8>(line, i, [&](Digits w, int64_t at) {
        for (int r = 0; r < ROWS; ++r) parts[r] = add_products(parts[r], w, x[r] + at);
      });
    const Lanes scale = panel.scale(s);
    if (row == 0) panel.ask_for_next<8>(s);
    for (int r = 0; r < ROWS; ++r) {
      totals[r] = fma(as_float(parts[r]), scale, totals[r]);
      x[r] += WIDE_SPAN;
    }
  }
  const Lanes gain = fill(float(panel.m.gain));
  for (int r = 0; r < ROWS; ++r) store(out + (row + r) * LANES, totals[r] * fill(in.scales[(row + r) * in.spans]) * gain);
}

template <int ROWS> STOCKPOT_APART void narrow_tile(const Panel& panel, const Inputs& in, int64_t row, float* out) {
  const int8_t* x[ROWS];
  Lanes totals[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    x[r] = in.narrow(row + r);
    totals[r] = fill(0.0f);
  }
  const uint8_t* line = panel.lines;
  const float *scales = in.scales + row * in.spans, *masses = in.masses + row * in.spans;
  for (int64_t s = 0; s < in.spans_used; ++s, ++scales, ++masses) {
    Partial parts[ROWS];
    for (int r = 0; r < ROWS; ++r) parts[r] = no_partial();
    STOCKPOT_UNROLL(4)
    for (int64_t i = 0; i < NARROW_SPAN; i += 4 * Panel::HALVES, line += LINE)
      Panel::take<4>(line, i, [&](Digits w, int64_t at) {
        for (int r = 0; r < ROWS; ++r) parts[r] = add_products(parts[r], w, x[r] + at);
      });
    const Lanes scale = panel.scale(s), low = panel.low(s);
    if (row == 0) panel.ask_for_next<4>(s);
    for (int r = 0; r < ROWS; ++r) {
      totals[r] = fma(as_float(widened(parts[r])), scale * fill(scales[r * in.spans]), totals[r]);
      totals[r] = fma(low, fill(masses[r * in.spans]), totals[r]);
      x[r] += NARROW_SPAN;
    }
  }
  for (int r = 0; r < ROWS; ++r) store(out + (row + r) * LANES, totals[r] * fill(float(panel.m.gain)));
}

template <int ROWS> inline void tiles(const Panel& panel, const Inputs& in, int64_t row, int64_t rows, float* out) {
  for (; row + ROWS <= rows; row += ROWS) {
    if (panel.m.bits == 8) wide_tile<ROWS>(panel, in, row, out);
    else narrow_tile<ROWS>(panel, in, row, out);
  }
  if constexpr (ROWS > 1) tiles<(ROWS + 1) / 2>(panel, in, row, rows, out);
}

// --- many rows, with the matrix unit ---

constexpr int WIDE_TILED = 6, NARROW_TILED = 12;  // rows from which it is faster

#if STOCKPOT_AMX

inline void multiply_wide_span(const uint8_t* weights, const int8_t* x, int64_t stride, int32_t* sums) {
  tile_load<WIDE_WEIGHTS>(weights, LINE);
  tile_load<WIDE_HIGH>(x, stride);
  tile_zero<SUMS>();
  tile_signed<SUMS, WIDE_HIGH, WIDE_WEIGHTS>();
  tile_load<WIDE_LOW>(x + WIDE_SPAN, stride);
  tile_zero<LOW_SUMS>();
  tile_unsigned<LOW_SUMS, WIDE_LOW, WIDE_WEIGHTS>();
  tile_store<SUMS>(sums);
  tile_store<LOW_SUMS>(sums + TILE_ROWS * LANES);
}

inline void multiply_narrow_span(const uint8_t* weights, const int8_t* x, int64_t stride, int32_t* sums) {
  tile_load<NARROW_WEIGHTS>(weights, LINE);
  tile_load<NARROW_INPUTS>(x, stride);
  tile_zero<SUMS>();
  tile_signed<SUMS, NARROW_INPUTS, NARROW_WEIGHTS>();
  tile_store<SUMS>(sums);
}

// ROWS of up to 16 rows; the sums of the next span are on their way while those of one become floats.
template <int ROWS>
STOCKPOT_APART void wide_block(const Matrix& m, int64_t block, const Inputs& in, int64_t row, float* out) {
  alignas(64) int32_t sums[2][2 * TILE_ROWS * LANES];
  Lanes totals[ROWS];
  for (int r = 0; r < ROWS; ++r) totals[r] = fill(0.0f);
  const uint8_t* weights = m.block(block);
  const uint16_t* scales = m.scales + block * m.spans() * LANES;
  const uint8_t* next_weights = weights + m.spans() * WIDE_SPAN * LANES;
  const uint16_t* next_scales = scales + m.spans() * LANES;
  const int8_t* x = in.narrow(row);
  const int32_t* masses = in.sums + row * in.spans;
  multiply_wide_span(weights, x, in.stride, sums[0]);
  for (int64_t s = 0; s < in.spans_used; ++s) {
    if (s + 1 < in.spans_used)
      multiply_wide_span(weights + (s + 1) * WIDE_SPAN * LANES, x + (s + 1) * 2 * WIDE_SPAN, in.stride, sums[(s + 1) % 2]);
    const Lanes scale = load_half(scales + s * LANES);
    const int32_t* high = sums[s % 2];
    ask_for_lines<WIDE_SPAN * LANES>(next_weights + s * WIDE_SPAN * LANES);
    ask_for_lines<LINE>(next_scales + s * LANES);
    STOCKPOT_UNROLL(16)
    for (int r = 0; r < ROWS; ++r) {
      const Sums part = joined(high + r * LANES, high + (TILE_ROWS + r) * LANES, -128 * masses[r * in.spans + s]);
      totals[r] = fma(as_float(part), scale, totals[r]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    store(out + (row + r) * LANES, totals[r] * fill(in.scales[(row + r) * in.spans]) * fill(float(m.gain)));
}

template <int ROWS>
STOCKPOT_APART void narrow_block(const Matrix& m, int64_t block, const Inputs& in, int64_t row, const uint8_t* panel,
                                 float* out) {
  alignas(64) int32_t sums[2][TILE_ROWS * LANES];
  Lanes totals[ROWS];
  for (int r = 0; r < ROWS; ++r) totals[r] = fill(0.0f);
  const uint16_t *scales = m.scales + block * m.spans() * LANES, *lows = m.lows + block * m.spans() * LANES;
  const uint8_t* next_weights = m.block(block + 1);
  const int64_t to_next = m.spans() * LANES;
  const int8_t* x = in.narrow(row);
  const float *gains = in.scales + row * in.spans, *masses = in.masses + row * in.spans;
  multiply_narrow_span(panel, x, in.stride, sums[0]);
  for (int64_t s = 0; s < in.spans_used; ++s) {
    if (s + 1 < in.spans_used)
      multiply_narrow_span(panel + (s + 1) * NARROW_SPAN * LANES, x + (s + 1) * NARROW_SPAN, in.stride, sums[(s + 1) % 2]);
    const Lanes scale = load_half(scales + s * LANES), low = load_half(lows + s * LANES);
    ask_for_lines<NARROW_SPAN * LANES / 2>(next_weights + s * NARROW_SPAN * LANES / 2);
    ask_for_lines<LINE / 2>(scales + to_next + s * LANES);
    ask_for_lines<LINE / 2>(lows + to_next + s * LANES);
    STOCKPOT_UNROLL(16)
    for (int r = 0; r < ROWS; ++r) {
      const Lanes part = as_float(loaded(sums[s % 2] + r * LANES));
      totals[r] = fma(part, scale * fill(gains[r * in.spans + s]), totals[r]);
      totals[r] = fma(low, fill(masses[r * in.spans + s]), totals[r]);
    }
  }
  for (int r = 0; r < ROWS; ++r) store(out + (row + r) * LANES, totals[r] * fill(float(m.gain)));
}

template <int ROWS>
inline void blocks_of(const Matrix& m, int64_t block, const Inputs& in, int64_t row, int64_t rows, const uint8_t* panel,
                      float* out) {
  for (; row + ROWS <= rows; row += ROWS) {
    if (m.bits == 8) wide_block<ROWS>(m, block, in, row, out);
    else narrow_block<ROWS>(m, block, in, row, panel, out);
  }
  if constexpr (ROWS > 1) blocks_of<ROWS / 2>(m, block, in, row, rows, panel, out);
}

STOCKPOT_APART inline void multiply_tiled(const Matrix& m, int64_t block, const Inputs& in, int64_t rows, uint8_t* room,
                                          float* out) {
  if (m.bits == 4) {
    const uint8_t* line = m.block(block);
    for (int64_t i = 0; i < m.inputs / 8; ++i, line += LINE) {
      const Halved w = halved_narrow(line);
      store_line(room + 2 * i * LINE, w.first);
      store_line(room + (2 * i + 1) * LINE, w.second);
    }
  }
  blocks_of<TILE_ROWS>(m, block, in, 0, rows, room, out);
}

#else

inline void multiply_tiled(const Matrix&, int64_t, const Inputs&, int64_t, uint8_t*, float*) {}

#endif

// Bytes of scratch for a block of a matrix with so many inputs.
inline int64_t panel_bytes(int64_t inputs) { return inputs / 2 * LINE + 2 * inputs / NARROW_SPAN * LANES * 4; }

// out (rows, 16): one block of outputs of the matrix for every row.
inline void multiply_block(const Matrix& m, int64_t block, const Inputs& in, int64_t rows, uint8_t* room, float* out) {
  if (in.tiled) multiply_tiled(m, block, in, rows, room, out);
  else if (rows == 1) multiply_row(m, block, in, out);
  else tiles<TILE>(Panel(m, block, room), in, 0, rows, out);
}

// One row of a matrix of 8 bits as floats: the look-up of an embedding.
inline void read_row(const Matrix& m, int64_t row, float* out, int64_t count) {
  const int64_t block = row / LANES, lane = row % LANES;
  const uint8_t* bytes = m.block(block) + lane * 4;
  for (int64_t s = 0; s * WIDE_SPAN < count; ++s) {
    float scales[LANES];
    store(scales, load_half(m.scales + (block * m.spans() + s) * LANES));
    const float scale = scales[lane] * float(m.gain);
    for (int64_t i = s * WIDE_SPAN; i < std::min<int64_t>(count, (s + 1) * WIDE_SPAN); ++i)
      out[i] = scale * float(bytes[i / 4 * LINE + i % 2 * 2 + i % 4 / 2] - 128);
  }
}

}  // namespace stockpot
