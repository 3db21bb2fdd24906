// A decoder's forward pass for a handful of tokens or a prompt, in one call.
//
// Tokens of any number of sequences come as one list, each with its row of the cache and its place in it; there is no
// padding. Stages of a layer: norm, queries/keys/values (rotated and stored on the spot), attention, output, norm,
// feed-forward. Weights are whole numbers of 8 or 4 bits, everything else is float32; the cache holds halves.
#pragma once

#include "attention.hpp"
#include "layers.hpp"
#include "products.hpp"
#include "room.hpp"
#include "team.hpp"

namespace stockpot {

struct Layer {
  Matrix qkv, out, up, down;
  const float *qkv_bias, *out_bias, *up_bias, *down_bias;
  Norm attention_norm, ffn_norm;
  const float *q_norm, *k_norm;              // per head, or null
  const float* rotary;                       // (positions, 2 * rotary_dim), or null
  int64_t window;                            // positions a token looks back, itself included; 0: all
};

struct Model {
  int64_t layers, dim, heads, kv_heads, head_dim, rotary_dim, ffn, gated, activation, vocab;
  float eps, attention_scale, embedding_scale;
  const Layer* layer;
  Matrix embed, head;
  const float* positions;                    // learned positions (context, dim), or null
  Norm final_norm;
};

struct Call {
  int64_t tokens, picks, threads;
  const int64_t* ids;                        // (tokens)
  const int64_t *rows, *places;              // (tokens): row of the cache, position in it
  uint16_t* const* keys;                     // per layer (rows, kv_heads, slots, head_dim) halves
  uint16_t* const* values;
  int64_t row_stride, head_stride;           // of keys and values, in halves
  const int64_t* picked;                     // (picks) tokens whose logits are wanted, in rising order
  float* logits;                             // (picks, head.outputs)
  float* hidden;                             // (tokens, dim) after the final norm, or null
};

constexpr int QUERY_TOKENS = 8;              // tokens of a prompt whose queries look at the same keys together
constexpr int MOST_QUERIES = QUERY_TOKENS * 64;  // with up to 64 query heads a key head
constexpr int MOST_TOKENS = 256;             // tokens that go through the layers together
constexpr int64_t AHEAD = 64 << 10;          // bytes of weights fetched while waiting for others, at most
constexpr int64_t AT_ONCE = 4 * LINE;        // of them between two looks at who has come
constexpr int REDUNDANT = 2;                 // up to so many tokens every thread makes the inputs itself, not waiting

inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
inline int sweeps(int64_t rows) { return rows > REDUNDANT ? Team::MANY : Team::SWEEPS; }
inline bool are_tiled(int64_t rows, const Matrix& m) {
  return rows >= (m.bits == 8 ? WIDE_TILED : NARROW_TILED) && has_byte_tiles();
}

// Inputs of a product, of some rows.
struct Shelf {
  Room<int8_t> digits;
  Room<float> scales, masses;
  Room<int32_t> sums;
  int64_t stride, spans;

  Shelf(int64_t rows, int64_t width)
      : digits(make_room<int8_t>((rows + TILE_ROWS) * 2 * width)),
        scales(make_room<float>(rows * width / NARROW_SPAN)), masses(make_room<float>(rows * width / NARROW_SPAN)),
        sums(make_room<int32_t>(rows * width / NARROW_SPAN)), stride(2 * width), spans(width / NARROW_SPAN) {}

  Inputs inputs(const Matrix& matrix, bool tiled) const {
    return {digits.get(), scales.get(), sums.get(), masses.get(), stride, spans, matrix.spans(), tiled};
  }
  InputRow row(int64_t at) const {
    return {digits.get() + at * stride, scales.get() + at * spans, sums.get() + at * spans, masses.get() + at * spans};
  }
};

struct Run {                                 // queries of consecutive tokens of one sequence
  int first, count;
};

// What one thread needs for itself.
struct Bench {
  int member;
  const uint8_t* asked = nullptr;            // up to where weights were fetched ahead
  Room<uint8_t> panel;
  Room<float> tiles, vector;
  GazeRoom gaze;
  std::unique_ptr<Shelf> shelf;
};

class Forward {
 public:
  Forward(const Model& model, const Call& call, Team& team)
      : m(model), c(call), team(team), tokens(call.tokens), inner(m.heads * m.head_dim),
        widest(round_up(std::max({m.dim, inner, m.ffn}), 64)), x(make_room<float>(tokens * m.dim)),
        normed(make_room<float>(tokens * m.dim)), q(make_room<float>(tokens * inner)),
        mixed(make_room<float>(tokens * inner)), wide(make_room<float>(tokens * m.ffn)), shared(tokens, widest) {
    const int64_t tiles = std::max<int64_t>(2, m.head_dim / LANES) * tokens * LANES;
    for (int t = 0; t < team.size(); ++t) {
      benches.emplace_back();
      benches[t].member = t;
      benches[t].panel = make_room<uint8_t>(panel_bytes(widest));
      benches[t].tiles = make_room<float>(tiles);
      benches[t].vector = make_room<float>(std::max(m.dim, m.head_dim));
      benches[t].shelf = std::make_unique<Shelf>(std::min<int64_t>(tokens, REDUNDANT), widest);
    }
    find_runs();
  }

  void work(int member) {
    const TileWork held(byte_shapes());
    Bench& bench = benches[member];
    embed();
    meet(bench, m.layer[0].qkv, m.head_dim / LANES);
    for (int64_t index = 0; index < m.layers; ++index) {
      const Layer& layer = m.layer[index];
      Inputs in = prepare(bench, x.get(), m.dim, &layer.attention_norm, layer.qkv);
      make_heads(bench, layer, index, in);
      meet(bench, layer.out);
      mix(bench, layer, index);
      meet(bench, layer.out);
      in = prepare(bench, mixed.get(), inner, nullptr, layer.out);
      add_product(bench, layer.out, layer.out_bias, in);
      meet(bench, layer.up, m.gated ? 2 : 1);
      in = prepare(bench, x.get(), m.dim, &layer.ffn_norm, layer.up);
      widen(bench, layer, in);
      meet(bench, layer.down);
      in = prepare(bench, wide.get(), m.ffn, nullptr, layer.down);
      add_product(bench, layer.down, layer.down_bias, in);
      if (index + 1 < m.layers) meet(bench, m.layer[index + 1].qkv, m.head_dim / LANES);
      else meet(bench, m.head);
    }
    finish(bench);
  }

 private:
  // Wait for the others; meanwhile let the weights be fetched with which this member will begin, `step` blocks a piece.
  void meet(Bench& bench, const Matrix& next, int64_t step = 1) {
    if (tokens > REDUNDANT) return team.meet();
    const int64_t first = team.begins(bench.member, int(next.blocks() / step), Team::SWEEPS) * step;
    const uint8_t *from = next.block(first), *most = std::min(from + AHEAD, next.block(next.blocks()));
    if (bench.asked >= from && bench.asked <= most) from = bench.asked;  // some of them at the last meeting
    team.meet([&] {
      if (from >= most) return breathe();
      for (const uint8_t* to = std::min(from + AT_ONCE, most); from < to; from += LINE) ask_for_line(from);
    });
    bench.asked = from;
  }

  void find_runs() {
    for (int t = 0; t < tokens; ++t) {
      const bool goes_on = !runs.empty() && runs.back().count < QUERY_TOKENS && c.rows[t] == c.rows[t - 1] &&
                           c.places[t] == c.places[t - 1] + 1;
      if (goes_on) ++runs.back().count;
      else runs.push_back({t, 1});
    }
  }

  void embed() {
    for (int t; (t = team.take(int(tokens))) >= 0;) {
      float* row = x.get() + t * m.dim;
      read_row(m.embed, c.ids[t], row, m.dim);
      for (int64_t i = 0; i < m.dim; ++i) row[i] *= m.embedding_scale;
      if (m.positions)
        for (int64_t i = 0; i < m.dim; ++i) row[i] += m.positions[c.places[t] * m.dim + i];
    }
  }

  void prepare_row(Bench& bench, const float* row, int64_t width, const Norm* norm, const Matrix& matrix,
                   const Shelf& shelf, int64_t at, bool tiled) {
    if (norm && norm->weight) {
      normalise(*norm, row, bench.vector.get(), width, m.eps);
      row = bench.vector.get();
    }
    make_inputs(row, width, matrix, tiled, shelf.row(at));
  }

  // Turn rows into the inputs of a product, behind a norm if there is one.
  Inputs prepare(Bench& bench, const float* rows, int64_t width, const Norm* norm, const Matrix& matrix) {
    if (tokens <= REDUNDANT) {
      for (int64_t t = 0; t < tokens; ++t) prepare_row(bench, rows + t * width, width, norm, matrix, *bench.shelf, t, false);
      return bench.shelf->inputs(matrix, false);
    }
    for (int t; (t = team.take(int(tokens))) >= 0;)
      prepare_row(bench, rows + t * width, width, norm, matrix, shared, t, are_tiled(tokens, matrix));
    team.meet();
    return shared.inputs(matrix, are_tiled(tokens, matrix));
  }

  // Make queries, keys and values one head at a time; rotate them, and store keys and values.
  void make_heads(Bench& bench, const Layer& layer, int64_t index, const Inputs& in) {
    const int blocks = int(m.head_dim / LANES), heads = int(m.heads + 2 * m.kv_heads);
    float* tiles = bench.tiles.get();
    team.share(bench.member, heads, sweeps(tokens), [&](int head) {
      for (int b = 0; b < blocks; ++b)
        multiply_block(layer.qkv, head * blocks + b, in, tokens, bench.panel.get(), tiles + b * tokens * LANES);
      for (int64_t t = 0; t < tokens; ++t) {
        float* vector = bench.vector.get();
        for (int b = 0; b < blocks; ++b) store(vector + b * LANES, load(tiles + (b * tokens + t) * LANES));
        if (layer.qkv_bias)
          for (int64_t i = 0; i < m.head_dim; ++i) vector[i] += layer.qkv_bias[head * m.head_dim + i];
        place_head(layer, index, head, t, vector);
      }
    });
  }

  void place_head(const Layer& layer, int64_t index, int64_t head, int64_t t, float* vector) {
    const bool is_query = head < m.heads, is_value = head >= m.heads + m.kv_heads;
    const float* gain = is_query ? layer.q_norm : layer.k_norm;
    if (!is_value && gain) normalise({gain, nullptr, 0}, vector, vector, m.head_dim, m.eps);
    if (!is_value && layer.rotary) rotate(layer.rotary + c.places[t] * 2 * m.rotary_dim, m.rotary_dim, vector);
    if (is_query) {
      float* target = q.get() + t * inner + head * m.head_dim;
      for (int64_t i = 0; i < m.head_dim; i += LANES) store(target + i, load(vector + i) * fill(m.attention_scale));
      return;
    }
    const int64_t kv = head - m.heads - (is_value ? m.kv_heads : 0);
    uint16_t* target = (is_value ? c.values : c.keys)[index] + slot(t, kv) + c.places[t] * m.head_dim;
    for (int64_t i = 0; i < m.head_dim; i += LANES) store_half(target + i, load(vector + i));
  }

  int64_t slot(int64_t t, int64_t kv) const { return c.rows[t] * c.row_stride + kv * c.head_stride; }

  void mix(Bench& bench, const Layer& layer, int64_t index) {
    const int group = int(m.heads / m.kv_heads), dim = int(m.head_dim);
    const float* queries[MOST_QUERIES];
    float *out[MOST_QUERIES], most[MOST_QUERIES], mass[MOST_QUERIES];
    int first[MOST_QUERIES], last[MOST_QUERIES];
    bench.gaze.most = most;
    bench.gaze.mass = mass;
    for (int piece; (piece = team.take(int(runs.size() * m.kv_heads))) >= 0;) {
      const Run run = runs[runs.size() - 1 - piece / m.kv_heads];  // the longest first
      const int64_t kv = piece % m.kv_heads;
      int count = 0;
      for (int t = run.first; t < run.first + run.count; ++t)
        for (int g = 0; g < group; ++g, ++count) {
          const int64_t at = t * inner + (kv * group + g) * dim;
          queries[count] = q.get() + at;
          out[count] = mixed.get() + at;
          last[count] = int(c.places[t]);
          first[count] = layer.window ? std::max(0, int(c.places[t] + 1 - layer.window)) : 0;
        }
      const int64_t at = slot(run.first, kv);
      attend({queries, out, first, last, count, dim}, bench.gaze, c.keys[index] + at, c.values[index] + at);
    }
  }

  // Add a product to the residual stream.
  void add_product(Bench& bench, const Matrix& matrix, const float* bias, const Inputs& in) {
    float* tile = bench.tiles.get();
    team.share(bench.member, matrix.blocks(), sweeps(tokens), [&](int block) {
      multiply_block(matrix, block, in, tokens, bench.panel.get(), tile);
      for (int64_t t = 0; t < tokens; ++t) {
        float* target = x.get() + t * m.dim + block * LANES;
        const Lanes change = load(tile + t * LANES);
        store(target, load(target) + (bias ? change + load(bias + block * LANES) : change));
      }
    });
  }

  // The first half of the feed-forward. Gated: blocks of gate and value take turns.
  void widen(Bench& bench, const Layer& layer, const Inputs& in) {
    const int step = m.gated ? 2 : 1;
    float *gates = bench.tiles.get(), *values = gates + tokens * LANES;
    team.share(bench.member, layer.up.blocks() / step, sweeps(tokens), [&](int piece) {
      multiply_block(layer.up, piece * step, in, tokens, bench.panel.get(), gates);
      if (m.gated) multiply_block(layer.up, piece * step + 1, in, tokens, bench.panel.get(), values);
      for (int64_t t = 0; t < tokens; ++t) {
        Lanes a = load(gates + t * LANES);
        if (layer.up_bias) a = a + load(layer.up_bias + piece * step * LANES);
        a = activate(m.activation, a);
        if (m.gated) {
          const Lanes value = load(values + t * LANES);
          a = a * (layer.up_bias ? value + load(layer.up_bias + (piece * step + 1) * LANES) : value);
        }
        store(wide.get() + t * m.ffn + piece * LANES, a);
      }
    });
  }

  // Final norm of all tokens, logits of those picked.
  void finish(Bench& bench) {
    for (int t; (t = team.take(int(tokens))) >= 0;) {
      float* row = normed.get() + t * m.dim;
      if (m.final_norm.weight) normalise(m.final_norm, x.get() + t * m.dim, row, m.dim, m.eps);
      else std::copy_n(x.get() + t * m.dim, m.dim, row);
      if (c.hidden) std::copy_n(row, m.dim, c.hidden + t * m.dim);
    }
    team.meet();
    if (!c.picks) return;
    for (int p; (p = team.take(int(c.picks))) >= 0;)
      prepare_row(bench, normed.get() + c.picked[p] * m.dim, m.dim, nullptr, m.head, shared, p, are_tiled(c.picks, m.head));
    team.meet();
    const Inputs in = shared.inputs(m.head, are_tiled(c.picks, m.head));
    float* tile = bench.tiles.get();
    team.share(bench.member, m.head.blocks(), sweeps(c.picks), [&](int block) {
      multiply_block(m.head, block, in, c.picks, bench.panel.get(), tile);
      for (int64_t p = 0; p < c.picks; ++p)
        store(c.logits + p * m.head.outputs + block * LANES, load(tile + p * LANES));
    });
  }

  const Model& m;
  const Call& c;
  Team& team;
  const int64_t tokens, inner, widest;
  Room<float> x, normed, q, mixed, wide;
  Shelf shared;
  std::vector<Run> runs;
  std::vector<Bench> benches;
};

inline bool are_inside(const Model& model, const Call& call) {
  for (int64_t t = 0; t < call.tokens; ++t)
    if (call.ids[t] < 0 || call.ids[t] >= model.vocab) return false;
  return true;
}

// Cut a long call into parts that stay in the processor's cache.
inline void forward(const Model& model, const Call& whole, Team& team) {
  int64_t begun = 0;
  for (int64_t from = 0; from < whole.tokens; from += MOST_TOKENS) {
    Call part = whole;
    part.tokens = std::min<int64_t>(MOST_TOKENS, whole.tokens - from);
    part.ids += from;
    part.rows += from;
    part.places += from;
    if (whole.hidden) part.hidden += from * model.dim;
    std::vector<int64_t> picked;
    for (; begun < whole.picks && whole.picked[begun] < from + part.tokens; ++begun)
      picked.push_back(whole.picked[begun] - from);
    part.picks = int64_t(picked.size());
    part.picked = picked.data();
    part.logits = whole.logits + (begun - part.picks) * model.head.outputs;
    Forward one(model, part, team);
    team.run([&](int member) { one.work(member); });
  }
}

}  // namespace stockpot
