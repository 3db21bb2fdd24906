// What Python calls: a decoder's pass, its writing, single products, and what brings weights into the form they are read in.
#include <atomic>

#include "decoder.hpp"
#include "packing.hpp"
#include "writing.hpp"

namespace stockpot {

// The product of one matrix, for layers outside of `Forward`.
class Product {
 public:
  Product(const Matrix& matrix, const float* rows, int64_t count, int64_t width, float* out, Team& team)
      : m(matrix), rows(rows), count(count), width(width), out(out), team(team), shelf(count, m.inputs) {
    for (int t = 0; t < team.size(); ++t) {
      panels.push_back(make_room<uint8_t>(panel_bytes(m.inputs)));
      tiles.push_back(make_room<float>(count * LANES));
    }
  }

  void work(int member) {
    const TileWork held(byte_shapes());
    for (int t; (t = team.take(int(count))) >= 0;)
      make_inputs(rows + t * width, width, m, are_tiled(count, m), shelf.row(t));
    team.meet();
    float* tile = tiles[member].get();
    team.share(member, m.blocks(), sweeps(count), [&](int block) {
      multiply_block(m, block, shelf.inputs(m, are_tiled(count, m)), count, panels[member].get(), tile);
      for (int64_t t = 0; t < count; ++t) store(out + t * m.outputs + block * LANES, load(tile + t * LANES));
    });
  }

 private:
  const Matrix& m;
  const float* rows;
  const int64_t count, width;
  float* out;
  Team& team;
  Shelf shelf;
  std::vector<Room<uint8_t>> panels;
  std::vector<Room<float>> tiles;
};

}  // namespace stockpot

using namespace stockpot;

extern "C" {

enum Outcome { DONE, NO_MEMORY, OUTSIDE };

const char* stockpot_lanes() {
#if STOCKPOT_AVX512
  return has_byte_tiles() ? "avx512-amx" : "avx512-vnni";
#elif STOCKPOT_AVX2
  return "avx2";
#else
  return "plain";
#endif
}

int stockpot_forward(const Model* model, const Call* call) {
  if (!are_inside(*model, *call)) return OUTSIDE;
  std::lock_guard<std::mutex> hold(entrance());
  try {
    forward(*model, *call, team_of(int(call->threads)));
  } catch (const std::exception&) {
    return NO_MEMORY;
  }
  return DONE;
}

int stockpot_write(const Model* model, const Call* call, Writing* writing) {
  if (!are_inside(*model, *call)) return OUTSIDE;
  std::lock_guard<std::mutex> hold(entrance());
  try {
    write(*model, *call, *writing, team_of(int(call->threads)));
  } catch (const std::exception&) {
    return NO_MEMORY;
  }
  return DONE;
}

int stockpot_multiply(const Matrix* matrix, const float* rows, int64_t count, int64_t width, float* out, int threads) {
  std::lock_guard<std::mutex> hold(entrance());
  try {
    Team& team = team_of(threads);
    Product product(*matrix, rows, count, width, out, team);
    team.run([&](int member) { product.work(member); });
  } catch (const std::exception&) {
    return NO_MEMORY;
  }
  return DONE;
}

void stockpot_read_rows(const Matrix* matrix, const int64_t* ids, int64_t count, int64_t width, float* out) {
  for (int64_t i = 0; i < count; ++i) read_row(*matrix, ids[i], out + i * width, width);
}

// Weights (outputs, inputs) to digits on a grid; the matrix says where they go.
int stockpot_pack(const float* weight, int64_t outputs, int64_t inputs, int paired, const Matrix* to, int threads) {
  std::lock_guard<std::mutex> hold(entrance());
  try {
    const Packing packing{weight, outputs, inputs, paired != 0, *to};
    Team& team = team_of(threads);
    team.run([&](int) {
      for (int block; (block = team.take(to->blocks())) >= 0;) packing.pack(block);
    });
  } catch (const std::exception&) {
    return NO_MEMORY;
  }
  return DONE;
}

// The largest size of a number.
float stockpot_top(const float* numbers, int64_t count, int threads) {
  std::lock_guard<std::mutex> hold(entrance());
  Team& team = team_of(threads);
  constexpr int64_t PIECE = 1 << 16;
  std::vector<float> tops(size_t(count / PIECE + 1), 0.0f);
  team.run([&](int) {
    for (int piece; (piece = team.take(int(tops.size()))) >= 0;) {
      const int64_t from = piece * PIECE, size = std::min(PIECE, count - from), whole_lanes = size / LANES * LANES;
      float top = whole_lanes ? top_of(numbers + from, whole_lanes) : 0.0f;
      for (int64_t i = from + whole_lanes; i < from + size; ++i) top = std::max(top, std::fabs(numbers[i]));
      tops[size_t(piece)] = top;
    }
  });
  return *std::max_element(tops.begin(), tops.end());
}

// Blocks of a GGUF file to floats; `finite` says whether all of them are numbers.
int stockpot_decode(int kind, const uint8_t* bytes, int64_t blocks, float* out, int32_t* finite, int threads) {
  const Block size = block_of(kind);
  if (size.bytes == 0) return OUTSIDE;
  std::lock_guard<std::mutex> hold(entrance());
  try {
    Team& team = team_of(threads);
    std::atomic<bool> all{true};
    team.run([&](int member) {
      team.share(member, int((blocks + HALVES - 1) / HALVES), Team::SWEEPS, [&](int piece) {
        const int64_t from = int64_t(piece) * HALVES;
        const int count = int(std::min<int64_t>(HALVES, blocks - from));
        if (!decode(kind, bytes + from * size.bytes, count, out + from * size.numbers)) all = false;
      });
    });
    *finite = all;
  } catch (const std::exception&) {
    return NO_MEMORY;
  }
  return DONE;
}

// Read a buffer once with all threads, to see what the memory gives.
int32_t stockpot_read(const uint8_t* bytes, int64_t count, int threads) {
  std::lock_guard<std::mutex> hold(entrance());
  Team& team = team_of(threads);
  std::atomic<int32_t> seen{0};
  constexpr int64_t PIECE = 1 << 16;
  const int16_t ones[2] = {1, 1};
  team.run([&](int) {
    Sums total = fill_sums(0);
    for (int piece; (piece = team.take(int(count / PIECE))) >= 0;)
      for (int64_t i = 0; i < PIECE; i += 64) total = add_products(total, load_digits(bytes + piece * PIECE + i), ones);
    seen += int32_t(sum(as_float(total)));
  });
  return seen;
}

}  // extern "C"
