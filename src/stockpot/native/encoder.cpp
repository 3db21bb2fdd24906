// An encoder's whole pass over many texts, in one call: attention in both directions, norms behind the sums, feed-forward.
//
// Texts stand one behind the other without padding. A thread takes some whole texts through all layers before it takes the
// next, so that what it works on stays in its cache and nobody waits for anybody.
#include "encoder_products.hpp"
#include "room.hpp"
#include "team.hpp"

namespace stockpot {

enum Activation { GELU, GELU_TANH, RELU };

struct Norm {
  const float *weight, *bias;                // the bias may be null; without a weight there is no norm
};

struct Layer {
  Matrix qkv, out, up, down;
  Norm attention_norm, ffn_norm;
};

struct Model {
  int64_t layers, dim, heads, head_dim, ffn, activation;
  float eps, attention_scale;
  const Layer* layer;
  const float* positions;                    // (context, dim), added to the embeddings, or null
  Norm embedding_norm;
};

struct Call {
  int64_t texts, threads;
  const int64_t* starts;                     // (texts + 1): where each begins, and where the last ends
  float* hidden;                             // (tokens, dim): embeddings, which become the final states
};

constexpr int64_t MOST_TOKENS = 120;         // that go through the layers together, unless a text alone is longer
constexpr int64_t LEAST_TOKENS = 48;         // fewer are not worth reading the weights
constexpr int64_t SHARES = 4;                // pieces a thread should find, so that all end together
constexpr int64_t APART = 16;                // numbers between rows, so that they do not fall on the same places of the cache

struct Piece { int64_t first, last; };       // texts

inline std::vector<Piece> cut(const Call& c) {
  const int64_t fair = c.starts[c.texts] / (SHARES * c.threads);
  const int64_t most = std::clamp(fair, LEAST_TOKENS, MOST_TOKENS);
  std::vector<Piece> found;
  for (int64_t text = 0; text < c.texts; ++text) {
    const bool joins = !found.empty() && c.starts[text + 1] - c.starts[found.back().first] <= most;
    if (joins) found.back().last = text + 1;
    else found.push_back({text, text + 1});
  }
  return found;
}

// x * P(X <= x). Source of the integral: Abramowitz & Stegun 1964, 7.1.26 (error below 1.5e-7).
inline Lanes gelu(Lanes x) {
  const Lanes one = fill(1.0f), zero = fill(0.0f), size = size_of(x);
  const Lanes t = one / fma(fill(0.3275911f * 0.70710678f), size, one);
  Lanes p = fill(1.061405429f);
  for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = fma(p, t, fill(c));
  const Lanes tail = p * t * exponential(fill(-0.5f) * x * x) * fill(0.5f);  // the integral of what is beyond |x|
  return larger(x, zero) - size * tail;
}

inline Lanes activate(int64_t kind, Lanes x) {
  if (kind == GELU) return gelu(x);
  if (kind == RELU) return larger(x, fill(0.0f));
  const Lanes u = fill(0.7978845608f) * fma(fill(0.044715f) * x * x, x, x);  // x * sigmoid(2 u)
  return x / (fill(1.0f) + exponential(fill(0.0f) - u - u));
}

// What one thread works in.
class Bench {
 public:
  Bench(const Model& model, int64_t tokens, int64_t longest)
      : m(model), inner(m.heads * m.head_dim), widest(std::max({m.dim, inner, m.ffn})), keys(round_up(longest)),
        qkv_step(3 * inner + APART), mixed_step(inner + APART), wide_step(m.ffn + APART), digit_step(widest + 2 * APART),
        spans((widest + SPAN - 1) / SPAN), qkv(make_room<float>(tokens * qkv_step)), mixed(make_room<float>(tokens * mixed_step)),
        wide(make_room<float>(tokens * wide_step)), digits(make_room<int16_t>(tokens * digit_step)),
        scales(make_room<float>(tokens * spans)), turned(make_room<float>(m.head_dim * keys)),
        weights(make_room<float>(TALL * keys)) {}

  // Take texts through all layers; `hidden` is where the first begins.
  void work(const Call& c, Piece piece) {
    const int64_t begin = c.starts[piece.first], count = c.starts[piece.last] - begin;
    float* x = c.hidden + begin * m.dim;
    for (int64_t text = piece.first; text < piece.last; ++text) enter(c, text);
    for (int64_t index = 0; index < m.layers; ++index) {
      const Layer& layer = m.layer[index];
      multiply(layer.qkv, prepare(layer.qkv, x, m.dim, m.dim, count), count,
               [&](int64_t row, int64_t at, Lanes v) { store(qkv.get() + row * qkv_step + at, v); });
      for (int64_t text = piece.first; text < piece.last; ++text)
        for (int64_t head = 0; head < m.heads; ++head) attend(c.starts[text] - begin, c.starts[text + 1] - c.starts[text], head);
      const auto add = [&](int64_t row, int64_t at, Lanes v) { store(x + row * m.dim + at, load(x + row * m.dim + at) + v); };
      multiply(layer.out, prepare(layer.out, mixed.get(), mixed_step, inner, count), count, add);
      normalise(layer.attention_norm, x, count);
      multiply(layer.up, prepare(layer.up, x, m.dim, m.dim, count), count,
               [&](int64_t row, int64_t at, Lanes v) { store(wide.get() + row * wide_step + at, activate(m.activation, v)); });
      multiply(layer.down, prepare(layer.down, wide.get(), wide_step, m.ffn, count), count, add);
      normalise(layer.ffn_norm, x, count);
    }
  }

 private:
  static int64_t round_up(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

  void enter(const Call& c, int64_t text) {
    const int64_t first = c.starts[text], count = c.starts[text + 1] - first;
    float* x = c.hidden + first * m.dim;
    if (m.positions)
      for (int64_t i = 0; i < count * m.dim; i += LANES) store(x + i, load(x + i) + load(m.positions + i));
    normalise(m.embedding_norm, x, count);
  }

  // Source: Ba et al. 2016, arXiv:1607.06450.
  void normalise(const Norm& norm, float* x, int64_t count) const {
    if (!norm.weight) return;
    for (int64_t row = 0; row < count; ++row, x += m.dim) {
      Lanes total = fill(0.0f), squares = fill(0.0f);
      for (int64_t i = 0; i < m.dim; i += LANES) total = total + load(x + i);
      const Lanes mean = fill(sum(total) / float(m.dim));
      for (int64_t i = 0; i < m.dim; i += LANES) {
        const Lanes a = load(x + i) - mean;
        squares = fma(a, a, squares);
      }
      const Lanes by = fill(1.0f / std::sqrt(sum(squares) / float(m.dim) + m.eps));
      for (int64_t i = 0; i < m.dim; i += LANES) {
        const Lanes a = (load(x + i) - mean) * by * load(norm.weight + i);
        store(x + i, norm.bias ? a + load(norm.bias + i) : a);
      }
    }
  }

  Rows prepare(const Matrix& matrix, const float* rows, int64_t step, int64_t width, int64_t count) {
    if (!matrix.scales) return {rows, nullptr, nullptr, step, 0};
    for (int64_t row = 0; row < count; ++row)
      to_digits(rows + row * step, width, digits.get() + row * digit_step, scales.get() + row * spans);
    return {nullptr, digits.get(), scales.get(), digit_step, spans};
  }

  // One head of one text, whose rows begin at `first`. Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1.
  void attend(int64_t first, int64_t count, int64_t head) {
    const int64_t dim = m.head_dim, line = round_up(count);
    const float *q = qkv.get() + first * qkv_step + head * dim, *k = q + inner, *v = k + inner;
    for (int64_t i = 0; i < dim; ++i) {
      float* to = turned.get() + i * line;
      for (int64_t row = 0; row < count; ++row) to[row] = k[row * qkv_step + i];
      std::fill(to + count, to + line, 0.0f);
    }
    alignas(64) float out[TALL * PANEL];
    float shares[TALL];
    const Heights heights(count);
    for (int64_t tile = 0; tile < heights.tiles; ++tile) {
      const int64_t row = heights.begin(tile);
      const int rows = heights.height(tile);
      across(rows, q + row * qkv_step, qkv_step, turned.get(), line, dim, line, out,
             [&](int r, int64_t at, Lanes found) { store(weights.get() + r * line + at, found); });
      for (int r = 0; r < rows; ++r) shares[r] = weigh(weights.get() + r * line, count, line);
      float* to = mixed.get() + (first + row) * mixed_step + head * dim;
      across(rows, weights.get(), line, v, qkv_step, count, dim, out,
             [&](int r, int64_t at, Lanes found) { store(to + r * mixed_step + at, found * fill(shares[r])); });
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
  float weigh(float* row, int64_t count, int64_t line) const {
    std::fill(row + count, row + line, -INFINITY);
    Lanes top = load(row), total = fill(0.0f);
    for (int64_t j = LANES; j < line; j += LANES) top = larger(top, load(row + j));
    const Lanes most = fill(largest(top)), scale = fill(m.attention_scale);
    for (int64_t j = 0; j < line; j += LANES) store(row + j, exponential((load(row + j) - most) * scale));
    std::fill(row + count, row + line, 0.0f);
    for (int64_t j = 0; j < line; j += LANES) total = total + load(row + j);
    return 1.0f / sum(total);
  }

  const Model& m;
  const int64_t inner, widest, keys, qkv_step, mixed_step, wide_step, digit_step, spans;
  Room<float> qkv, mixed, wide;
  Room<int16_t> digits;
  Room<float> scales, turned, weights;
};

void encode(const Model& m, const Call& c, Team& team) {
  const std::vector<Piece> pieces = cut(c);
  int64_t tokens = 0, longest = 0;
  for (const Piece& one : pieces) tokens = std::max(tokens, c.starts[one.last] - c.starts[one.first]);
  for (int64_t text = 0; text < c.texts; ++text) longest = std::max(longest, c.starts[text + 1] - c.starts[text]);
  std::vector<std::unique_ptr<Bench>> benches;
  for (int t = 0; t < team.size(); ++t) benches.push_back(std::make_unique<Bench>(m, tokens, longest));
  team.run([&](int member) {
    for (int piece; (piece = team.take(int(pieces.size()))) >= 0;) benches[size_t(member)]->work(c, pieces[size_t(piece)]);
  });
}

}  // namespace stockpot

using namespace stockpot;

extern "C" {

int64_t stockpot_encoder_panel() { return PANEL; }
int64_t stockpot_encoder_span() { return SPAN; }
int64_t stockpot_encoder_has_pairs() { return HAS_PAIRS; }
int64_t stockpot_encoder_is_fast() { return IS_FAST; }

int stockpot_encode(const Model* model, const Call* call) {
  std::lock_guard<std::mutex> hold(entrance());
  try {
    encode(*model, *call, team_of(int(call->threads)));
  } catch (const std::exception&) {
    return 1;
  }
  return 0;
}

// Weights (outputs, inputs) into the panels of a matrix.
int stockpot_encoder_pack(const float* weight, const Matrix* to, int threads) {
  std::lock_guard<std::mutex> hold(entrance());
  try {
    Team& team = team_of(threads);
    team.run([&](int) {
      for (int panel; (panel = team.take(int(to->count()))) >= 0;) {
        if (to->scales) pack_pairs(weight, *to, panel);
        else pack_floats(weight, *to, panel);
      }
    });
  } catch (const std::exception&) {
    return 1;
  }
  return 0;
}

}  // extern "C"
