// Several tokens written one after another in one call: each row goes on with the likeliest id.
//
// A step is the pass of decoder.hpp, so that the ids are those of as many single calls.
#pragma once

#include <chrono>
#include <limits>

#include "decoder.hpp"

namespace stockpot {

struct Writing {
  int64_t steps;                             // most tokens a row
  double seconds;                            // no further step begins after so long
  int64_t enders;
  const int64_t* ender;                      // (enders) ids that end a text; the call ends with the step that writes one
  const int64_t* least;                      // (rows) first steps in which the row's text must not end
  int64_t* written;                          // (steps, rows)
  int64_t taken;                             // steps that were done
};

// The place of the largest number, the first of equal ones; that of the first which is no number, if there is one.
inline int64_t likeliest(const float* numbers, int64_t count) {
  constexpr int64_t PIECE = 64;              // whether it holds anything larger is seen without a branch
  int64_t place = 0;
  float most = -std::numeric_limits<float>::infinity();
  for (int64_t from = 0; from < count; from += PIECE) {
    const int64_t to = std::min(count, from + PIECE);
    int larger = 0;
    for (int64_t i = from; i < to; ++i) larger |= !(numbers[i] <= most);
    if (!larger) continue;
    for (int64_t i = from; i < to; ++i)
      if (!(numbers[i] <= most)) {
        place = i;
        most = numbers[i];
        if (most != most) return place;
      }
  }
  return place;
}

// `first` holds one token for each row, picks all of them, and has room for their logits.
inline void write(const Model& model, const Call& first, Writing& writing, Team& team) {
  const auto begin = std::chrono::steady_clock::now();
  const std::chrono::duration<double> limit(writing.seconds);
  std::vector<int64_t> places(first.places, first.places + first.tokens);
  Call call = first;
  call.places = places.data();
  bool ended = false;
  for (writing.taken = 0; writing.taken < writing.steps && !ended; ++writing.taken) {
    if (writing.taken && std::chrono::steady_clock::now() - begin >= limit) break;
    forward(model, call, team);
    int64_t* ids = writing.written + writing.taken * call.tokens;
    team.run([&](int) {
      for (int row; (row = team.take(int(call.tokens))) >= 0;) {
        float* logits = call.logits + row * model.head.outputs;
        if (writing.taken < writing.least[row])
          for (int64_t i = 0; i < writing.enders; ++i) logits[writing.ender[i]] = -std::numeric_limits<float>::infinity();
        ids[row] = likeliest(logits, model.vocab);
      }
    });
    for (int64_t row = 0; row < call.tokens; ++row) {
      ended = ended || std::find(writing.ender, writing.ender + writing.enders, ids[row]) != writing.ender + writing.enders;
      ++places[size_t(row)];
    }
    call.ids = ids;
  }
}

}  // namespace stockpot
