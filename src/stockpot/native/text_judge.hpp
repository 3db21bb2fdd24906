// How likely a model finds given ids behind given states, without ever holding all logits.
//
// The output matrix is read once, panel by panel, for all states; of the logits only each lane's largest and its sum of powers are kept.
#pragma once

#include "room.hpp"
#include "text_products.hpp"

namespace stockpot {

struct Question {
  int64_t count, threads;
  const float* states;                       // (count, inputs)
  const int64_t* targets;                    // (count)
  double* log_probs;                         // (count): of the targets, natural logarithms
  double* gaps;                              // (count): how far a target's logit stands above the best of the others
};

// What a thread has seen of the logits that are no targets, for each state lane by lane.
struct Glance {
  Room<float> tops, sums, panel;

  Glance(int64_t count, int64_t inputs)
      : tops(make_room<float>(count * LANES)), sums(make_room<float>(count * LANES)), panel(make_room<float>(inputs * PANEL)) {
    std::fill_n(tops.get(), count * LANES, LEAST_LOGIT);
    std::fill_n(sums.get(), count * LANES, 0.0f);
  }

  // Source: Milakov & Gimelshein 2018, arXiv:1805.02867, algorithm 3.
  void see(int64_t row, const float* logits) {
    float *top = tops.get() + row * LANES, *sum = sums.get() + row * LANES;
    Lanes most = load(top), total = load(sum);
    for (int j = 0; j < BROAD; ++j) {
      const Lanes found = load(logits + j * LANES);
      if (any_above(found, most)) {
        const Lanes higher = larger(found, most);
        total = total * exponential(most - higher);
        most = higher;
      }
      total = total + exponential(found - most) + (found - found);  // what is not a number stays that
    }
    store(top, most);
    store(sum, total);
  }

  static constexpr float LEAST_LOGIT = -1e30f;
};

inline void judge(const Matrix& head, const Question& q, Team& team) {
  std::vector<Glance> glances;
  for (int t = 0; t < team.size(); ++t) glances.emplace_back(q.count, head.inputs);
  std::vector<float> own(size_t(q.count), NAN);
  team.run([&](int member) {
    Glance& glance = glances[size_t(member)];
    for (int panel; (panel = team.take(int(head.count()))) >= 0;) {
      const int64_t first = panel * PANEL, there = std::min(PANEL, head.outputs - first);
      multiply_panel(head, panel, {q.states, nullptr, nullptr, head.inputs, 0}, q.count, glance.panel.get(),
                     [&](int64_t row, int rows, float* out) {
        for (int r = 0; r < rows; ++r) {
          float* logits = out + r * PANEL;
          const int64_t at = q.targets[row + r] - first;
          std::fill(logits + there, logits + PANEL, Glance::LEAST_LOGIT);
          if (at >= 0 && at < there) {
            own[size_t(row + r)] = logits[at];
            logits[at] = Glance::LEAST_LOGIT;
          }
          glance.see(row + r, logits);
        }
      });
    }
  });
  for (int64_t row = 0; row < q.count; ++row) {
    double best = Glance::LEAST_LOGIT, sum = 0.0;
    const double mine = own[size_t(row)];
    for (const Glance& one : glances)
      for (int64_t i = row * LANES; i < (row + 1) * LANES; ++i) best = std::max(best, double(one.tops[i]));
    const double top = std::max(best, mine);
    for (const Glance& one : glances)
      for (int64_t i = row * LANES; i < (row + 1) * LANES; ++i) sum += double(one.sums[i]) * std::exp(double(one.tops[i]) - top);
    q.log_probs[row] = mine - top - std::log(sum + std::exp(mine - top));
    q.gaps[row] = mine - best;
  }
}

}  // namespace stockpot
