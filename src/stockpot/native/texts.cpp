// A model's whole pass over many texts in one call, and what it finds likely behind them: an encoder's or a decoder's reading.
#include "text_judge.hpp"
#include "text_pass.hpp"

namespace stockpot {

// Tokens that go through the layers together, unless a text alone is longer. Fewer are not worth reading the weights; more leave
// the caches. Where panels have to be laid out it takes more to be worth it, and members share them if there are few tokens.
struct Size { int64_t least, most, few; };
constexpr Size LAID_OUT = {48, 120, 0}, AS_THEY_ARE = {96, 384, 2048};
constexpr int64_t TURNS = 4;                 // pieces a thread should find, so that all end together

inline std::vector<Piece> cut(const Call& c, Size size) {
  std::vector<Piece> found;
  int64_t most = 0;
  for (int64_t text = 0; text < c.texts; ++text) {
    if (!found.empty() && c.starts[text + 1] - c.starts[found.back().first] <= most) {
      found.back().last = text + 1;
      continue;
    }
    most = std::clamp((c.starts[c.texts] - c.starts[text]) / (TURNS * c.threads), size.least, size.most);
    found.push_back({text, text + 1});
  }
  return found;
}

// A thread takes some whole texts through all layers before it takes the next, so that what it works on stays in its cache and
// nobody waits for anybody; but where there are few tokens, or one text is more than a thread's share, all work side by side.
void run(const Model& m, const Call& c, Team& team) {
  int64_t longest = 0, keys = 0, tokens = 0;
  for (int64_t text = 0; text < c.texts; ++text) {
    const int64_t own = c.starts[text + 1] - c.starts[text];
    longest = std::max(longest, own);
    keys = std::max(keys, own + (c.before ? c.before[text] : 0));
  }
  Size size = m.layer->qkv.panels ? LAID_OUT : AS_THEY_ARE;
  const bool together = team.size() > 1 && (longest * team.size() > c.starts[c.texts] || c.starts[c.texts] < size.few);
  if (together) size.least = size.most = size.most * team.size();
  const std::vector<Piece> pieces = cut(c, size);
  for (const Piece& one : pieces) tokens = std::max(tokens, c.starts[one.last] - c.starts[one.first]);
  std::vector<std::unique_ptr<Desk>> desks;
  std::vector<std::unique_ptr<Hand>> hands;
  for (int t = 0; t < team.size(); ++t) {
    if (t == 0 || !together) desks.push_back(std::make_unique<Desk>(m, tokens));
    hands.push_back(std::make_unique<Hand>(m, c, desks[0]->widest, keys));
  }
  team.run([&](int member) {
    Pass pass(m, c, *desks[together ? 0 : size_t(member)], *hands[size_t(member)], {together ? &team : nullptr});
    if (together) {
      for (const Piece& one : pieces) pass.work(one);
      return;
    }
    for (int piece; (piece = team.take(int(pieces.size()))) >= 0;) pass.work(pieces[size_t(piece)]);
  });
}

template <class Work> int succeeds(int64_t threads, Work&& work) {
  std::lock_guard<std::mutex> hold(entrance());
  try {
    work(team_of(int(threads)));
  } catch (const std::exception&) {
    return 1;
  }
  return 0;
}

}  // namespace stockpot

using namespace stockpot;

extern "C" {

int64_t stockpot_texts_panel() { return PANEL; }
int64_t stockpot_texts_span() { return SPAN; }
int64_t stockpot_texts_has_pairs() { return HAS_PAIRS; }
int64_t stockpot_texts_is_fast() { return IS_FAST; }

int stockpot_texts_run(const Model* model, const Call* call) {
  return succeeds(call->threads, [&](Team& team) { run(*model, *call, team); });
}

int stockpot_texts_judge(const Matrix* head, const Question* question) {
  return succeeds(question->threads, [&](Team& team) { judge(*head, *question, team); });
}

// Weights into the panels of a matrix.
int stockpot_texts_pack(const Matrix* to, int threads) {
  return succeeds(threads, [&](Team& team) {
    team.run([&](int) {
      for (int panel; (panel = team.take(int(to->count()))) >= 0;) {
        if (to->scales) pack_pairs(*to, panel);
        else pack_floats(*to, panel);
      }
    });
  });
}

}  // extern "C"
