// The pass of some texts through all layers of a model: attention to both sides or back only, norms before or behind the
// sublayers.
//
// Texts stand one behind the other without padding. A text may branch: what is behind its trunk is several continuations, each of
// which sees the trunk and itself. It may also go on from what a row of a cache holds.
#pragma once

#include "layers.hpp"
#include "room.hpp"
#include "text_products.hpp"

namespace stockpot {

struct Layer {
  Matrix qkv, out, gate, up, down;           // without a gate: `outputs` 0
  Norm attention_norm, ffn_norm;             // before the sublayers
  Norm attention_post_norm, ffn_post_norm;   // behind the sums
  const float *q_norm, *k_norm;              // per head, or null
  const float* rotary;                       // (positions, 2 * rotary_dim), or null
  int64_t window;                            // positions a token sees on a side, itself included; 0: all
};

struct Model {
  int64_t layers, dim, heads, kv_heads, head_dim, rotary_dim, ffn, activation, causal;
  float eps, attention_scale;
  const Layer* layer;
  const float* positions;                    // (context, dim), added to the embeddings, or null
  Norm embedding_norm;
};

struct Call {
  int64_t texts, threads;
  const int64_t* starts;                     // (texts + 1): where each begins, and where the last ends
  float* hidden;                             // (tokens, dim): embeddings, which become the states behind the last layer
  const int64_t *trunks, *branches;          // (texts): tokens of the trunk; (tokens): where in its text a token's branch begins,
                                             // 0 in the trunk; null where nothing branches
  const int64_t *rows, *before;              // (texts): row of the cache, tokens it holds; null without a cache
  uint8_t* const* keys;                      // per layer (rows, kv_heads, slots, head_dim), stored as `type` says
  uint8_t* const* values;
  int64_t type, row_stride, head_stride;     // of keys and values; strides in numbers
};

struct Piece { int64_t first, last; };       // texts that go through the layers together

constexpr int64_t APART = 16;                // numbers between rows, so that they do not fall on the same places of the cache
constexpr int64_t PARTS = 4;                 // of a text, where a team works on it together

inline int64_t whole_lanes(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

// What a piece is worked on in.
struct Desk {
  const int64_t inner, flat, widest, flat_step, normed_step, mixed_step, wide_step, digit_step, spans;
  Room<float> qkv, normed, mixed, wide;
  Room<int16_t> digits;
  Room<float> scales;

  Desk(const Model& m, int64_t tokens)
      : inner(m.heads * m.head_dim), flat((m.heads + 2 * m.kv_heads) * m.head_dim), widest(std::max({m.dim, inner, m.ffn})),
        flat_step(flat + APART), normed_step(m.dim + APART), mixed_step(inner + APART), wide_step(m.ffn + APART),
        digit_step(widest + 2 * APART), spans((widest + SPAN - 1) / SPAN), qkv(make_room<float>(tokens * flat_step)),
        normed(make_room<float>(tokens * normed_step)), mixed(make_room<float>(tokens * mixed_step)),
        wide(make_room<float>(tokens * wide_step)), digits(make_room<int16_t>(m.layer->qkv.scales ? tokens * digit_step : 0)),
        scales(make_room<float>(m.layer->qkv.scales ? tokens * spans : 0)) {}
};

// What a thread needs for itself.
struct Hand {
  Room<float> panel, turned, weights, keys, values;  // the last two: of a cache that does not hold floats

  Hand(const Model& m, const Call& c, int64_t widest, int64_t most)
      : panel(make_room<float>(widest * PANEL)), turned(make_room<float>(m.head_dim * whole_lanes(most))),
        weights(make_room<float>(TALL * whole_lanes(most))), keys(make_room<float>(c.rows && c.type ? most * m.head_dim : 0)),
        values(make_room<float>(c.rows && c.type ? most * m.head_dim : 0)) {}
};

class Pass {
 public:
  Pass(const Model& model, const Call& call, Desk& desk, Hand& hand, Crew crew)
      : m(model), c(call), d(desk), hand(hand), crew(crew) {}

  // Take texts through all layers.
  void work(Piece piece) {
    begin = c.starts[piece.first];
    count = c.starts[piece.last] - begin;
    x = c.hidden + begin * m.dim;
    crew.each(piece.last - piece.first, [&](int64_t i) { enter(piece.first + i); });
    for (int64_t index = 0; index < m.layers; ++index) {
      const Layer& layer = m.layer[index];
      const auto add = [&](int64_t row, int64_t at, Lanes v) { store(x + row * m.dim + at, load(x + row * m.dim + at) + v); };
      const auto widen = [&](int64_t row, int64_t at, Lanes v) {
        store(d.wide.get() + row * d.wide_step + at, activate(m.activation, v));
      };
      product(layer.qkv, entered(layer.qkv, layer.attention_norm), [&](int64_t row, int64_t at, Lanes v) {
        store(d.qkv.get() + row * d.flat_step + at, v);
      });
      share(piece, 1, [&](int64_t text, int64_t, int64_t part, int64_t parts) { place(layer, index, text, part, parts); });
      share(piece, m.kv_heads, [&](int64_t text, int64_t kv, int64_t part, int64_t parts) { attend(layer, index, text, kv, part, parts); });
      product(layer.out, prepare(layer.out, d.mixed.get(), d.mixed_step, d.inner), add);
      leave(layer.attention_post_norm);
      const Rows in = entered(layer.up, layer.ffn_norm);
      if (layer.gate.outputs) {
        product(layer.gate, in, widen);
        product(layer.up, in, [&](int64_t row, int64_t at, Lanes v) {
          float* to = d.wide.get() + row * d.wide_step + at;
          store(to, load(to) * v);
        });
      } else {
        product(layer.up, in, widen);
      }
      product(layer.down, prepare(layer.down, d.wide.get(), d.wide_step, m.ffn), add);
      leave(layer.ffn_post_norm);
    }
  }

 private:
  template <class Put> void product(const Matrix& matrix, const Rows& in, Put&& put) {
    multiply(matrix, in, count, crew, hand.panel.get(), put);
  }

  // Each of `heads` of each text, in parts where a team works together: do(text, head, part, parts).
  template <class Do> void share(Piece piece, int64_t heads, Do&& work) {
    const int64_t parts = crew.team ? PARTS : 1;
    crew.each((piece.last - piece.first) * heads * parts,
              [&](int64_t i) { work(piece.first + i / (heads * parts), i / parts % heads, i % parts, parts); });
  }

  void enter(int64_t text) const {
    for (int64_t t = c.starts[text]; t < c.starts[text + 1]; ++t) {
      float* row = c.hidden + t * m.dim;
      if (m.positions)
        for (int64_t i = 0; i < m.dim; i += LANES) store(row + i, load(row + i) + load(m.positions + (t - c.starts[text]) * m.dim + i));
      if (m.embedding_norm.weight) normalise(m.embedding_norm, row, row, m.dim, m.eps);
    }
  }

  // The inputs of a product: the stream, behind a norm if there is one.
  Rows entered(const Matrix& matrix, const Norm& norm) {
    if (!norm.weight) return prepare(matrix, x, m.dim, m.dim);
    float* to = d.normed.get();
    crew.each(count, [&](int64_t row) { normalise(norm, x + row * m.dim, to + row * d.normed_step, m.dim, m.eps); });
    return prepare(matrix, to, d.normed_step, m.dim);
  }

  void leave(const Norm& norm) {
    if (norm.weight) crew.each(count, [&](int64_t row) { normalise(norm, x + row * m.dim, x + row * m.dim, m.dim, m.eps); });
  }

  Rows prepare(const Matrix& matrix, const float* rows, int64_t step, int64_t width) {
    if (!matrix.scales) return {rows, nullptr, nullptr, step, 0};
    crew.each(count, [&](int64_t row) {
      to_digits(rows + row * step, width, d.digits.get() + row * d.digit_step, d.scales.get() + row * d.spans);
    });
    return {nullptr, d.digits.get(), d.scales.get(), d.digit_step, d.spans};
  }

  // --- attention ---

  struct Text {
    int64_t first, count, before, trunk;     // row of the piece; new tokens; those that a cache holds; those before branches
    const int64_t* branches;
  };

  Text text_of(int64_t text) const {
    const int64_t first = c.starts[text], size = c.starts[text + 1] - first;
    return {first - begin, size, c.before ? c.before[text] : 0, c.trunks ? c.trunks[text] : size,
            c.branches ? c.branches + first : nullptr};
  }

  // Where a token stands: every branch goes on from the end of the trunk.
  static int64_t place_of(const Text& own, int64_t t) {
    return own.before + (t < own.trunk ? t : own.trunk + t - own.branches[t]);
  }

  // Norms and rotations of queries and keys; keys and values go to the cache.
  void place(const Layer& layer, int64_t index, int64_t text, int64_t part, int64_t parts) {
    const Text own = text_of(text);
    for (int64_t t = own.count * part / parts; t < own.count * (part + 1) / parts; ++t) {
      float* row = d.qkv.get() + (own.first + t) * d.flat_step;
      const int64_t at = place_of(own, t);
      for (int64_t head = 0; head < m.heads + m.kv_heads; ++head) {
        float* vector = row + head * m.head_dim;
        const float* gain = head < m.heads ? layer.q_norm : layer.k_norm;
        if (gain) normalise({gain, nullptr, 0}, vector, vector, m.head_dim, m.eps);
        if (layer.rotary) rotate(layer.rotary + at * 2 * m.rotary_dim, m.rotary_dim, vector);
      }
      if (!c.rows) continue;
      for (int64_t kv = 0; kv < m.kv_heads; ++kv) {
        const int64_t to = c.rows[text] * c.row_stride + kv * c.head_stride + (own.before + t) * m.head_dim;
        const float *key = row + d.inner + kv * m.head_dim, *value = key + m.kv_heads * m.head_dim;
        for (int64_t i = 0; i < m.head_dim; i += LANES) {
          store(To{c.keys[index], c.type} + (to + i), load(key + i));
          store(To{c.values[index], c.type} + (to + i), load(value + i));
        }
      }
    }
  }

  struct Held { const float *keys, *values; int64_t step; };  // of one key head: rows `step` apart

  Held held_by(int64_t index, int64_t text, const Text& own, int64_t kv) {
    if (c.rows) {
      const int64_t at = c.rows[text] * c.row_stride + kv * c.head_stride, size = (own.before + own.count) * m.head_dim;
      const From keys = From{c.keys[index], c.type} + at, values = From{c.values[index], c.type} + at;
      if (c.type == FLOATS) return {floats(keys), floats(values), m.head_dim};
      for (int64_t i = 0; i < size; i += LANES) {
        store(hand.keys.get() + i, load(keys + i));
        store(hand.values.get() + i, load(values + i));
      }
      return {hand.keys.get(), hand.values.get(), m.head_dim};
    }
    const float* keys = d.qkv.get() + own.first * d.flat_step + d.inner + kv * m.head_dim;
    return {keys, keys + m.kv_heads * m.head_dim, d.flat_step};
  }

  struct Sight { int64_t from, to, gap, resumes; };  // keys from … to - 1, but not gap … resumes - 1

  Sight sight(const Layer& layer, const Text& own, int64_t t) const {
    const int64_t at = place_of(own, t), all = own.before + own.count, window = layer.window ? layer.window : all;
    const int64_t to = m.causal ? own.before + t + 1 : std::min(all, at + window), least = std::max<int64_t>(0, at + 1 - window);
    if (t < own.trunk) return {least, to, to, to};
    const int64_t trunk = own.before + own.trunk;
    return {std::min(least, trunk), to, trunk, own.before + own.branches[t] + std::max<int64_t>(0, least - trunk)};
  }

  // A part of the queries of the heads that look at one key head. Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1.
  void attend(const Layer& layer, int64_t index, int64_t text, int64_t kv, int64_t part, int64_t parts) {
    const Text own = text_of(text);
    const Held held = held_by(index, text, own, kv);
    const int64_t dim = m.head_dim, group = m.heads / m.kv_heads, line = whole_lanes(own.before + own.count);
    const Heights heights(own.count);
    const int64_t first = heights.tiles * part / parts, last = heights.tiles * (part + 1) / parts;
    if (first == last) return;
    turn_keys(held, own.before + own.count, line);
    alignas(64) float out[TALL * PANEL];
    float portions[TALL];
    float* weights = hand.weights.get();
    for (int64_t head = kv * group; head < (kv + 1) * group; ++head)
      for (int64_t tile = first; tile < last; ++tile) {
        const int64_t row = heights.begin(tile);
        const int rows = heights.height(tile);
        const int64_t seen = sight(layer, own, row + rows - 1).to, wide = whole_lanes(seen);
        across(rows, d.qkv.get() + (own.first + row) * d.flat_step + head * dim, d.flat_step, hand.turned.get(), line, dim, wide, out,
               [&](int r, int64_t at, Lanes found) { store(weights + r * line + at, found); });
        for (int r = 0; r < rows; ++r) portions[r] = weigh(weights + r * line, sight(layer, own, row + r), wide);
        float* to = d.mixed.get() + (own.first + row) * d.mixed_step + head * dim;
        across(rows, weights, line, held.values, held.step, seen, dim, out,
               [&](int r, int64_t at, Lanes found) { store(to + r * d.mixed_step + at, found * fill(portions[r])); });
      }
  }

  // Keys side by side: (head_dim, line), 0 behind the last.
  void turn_keys(const Held& held, int64_t count, int64_t line) {
    const int64_t whole = count / LANES * LANES;
    for (int64_t i = 0; i < m.head_dim; i += LANES) {
      float* to = hand.turned.get() + i * line;
      for (int64_t row = 0; row < whole; row += LANES) turn(held.keys + row * held.step + i, held.step, to + row, line);
      for (int64_t j = 0; j < LANES; ++j) {
        for (int64_t row = whole; row < count; ++row) to[j * line + row] = held.keys[row * held.step + i + j];
        std::fill(to + j * line + count, to + (j + 1) * line, 0.0f);
      }
    }
  }

  // A few rows of a times all of b, whose lines are `line` apart.
  template <class Put>
  static void across(int rows, const float* a, int64_t step, const float* b, int64_t line, int64_t depth, int64_t width,
                     float* out, Put&& put) {
    for (int64_t at = 0; at < width; at += PANEL) {
      const bool whole = at + PANEL <= width;
      if (whole) float_tile_of<TALL, BROAD>(rows, a, step, b + at, line, depth, out);
      else float_tile_of<TALL, 1>(rows, a, step, b + at, line, depth, out);
      for (int r = 0; r < rows; ++r)
        for (int j = 0; j < (whole ? BROAD : 1); ++j) put(r, at + j * LANES, load(out + (r * BROAD + j) * LANES));
    }
  }

  // Scores to weights before they are divided by their sum; returns what to multiply with.
  float weigh(float* row, const Sight& s, int64_t line) const {
    hide(row, s, line, -INFINITY);
    Lanes top = load(row), total = fill(0.0f);
    for (int64_t j = LANES; j < line; j += LANES) top = larger(top, load(row + j));
    const Lanes most = fill(largest(top)), scale = fill(m.attention_scale);
    for (int64_t j = 0; j < line; j += LANES) store(row + j, exponential((load(row + j) - most) * scale));
    hide(row, s, line, 0.0f);
    for (int64_t j = 0; j < line; j += LANES) total = total + load(row + j);
    return 1.0f / sum(total);
  }

  static void hide(float* row, const Sight& s, int64_t line, float with) {
    std::fill(row, row + s.from, with);
    std::fill(row + s.gap, row + s.resumes, with);
    std::fill(row + s.to, row + line, with);
  }

  const Model& m;
  const Call& c;
  Desk& d;
  Hand& hand;
  const Crew crew;
  int64_t begin = 0, count = 0;
  float* x = nullptr;
};

}  // namespace stockpot
