// The candidates that the sweep lists. The memory of all lists is there before the sweep begins to write, so that nothing can
// fail after that.
#pragma once

#include <vector>

#include "../threshold.h"
#include "update.h"
#include "workspace.h"

namespace dstee::cpu {

// Which weights of a layer are listed: those between bounds on both sides of what is selected. A loose bound costs a little
// list space, a missed one a scan of the layer, never a wrong answer.
struct Bounds {
  uint32_t low_score = 0, low_signal = 0;  // growth candidates below this are surely not grown
  uint32_t low_drop = 0;                   // active weights with a smaller drop key surely stay
  int64_t last = INT64_MAX;                // of the candidates right at the low bound, often many, those beyond this index too
  uint32_t high_score = kMaxRank;          // candidates with a larger score are surely grown,
  uint32_t high_drop = kMaxRank;           // active weights with a larger drop key surely dropped
  int64_t expected_grow = 0, expected_drop = 0;  // candidates, weights above the low bounds

  // Whether the sweep commits what lies above the high bounds.
  bool commits() const { return high_score < kMaxRank && high_drop < kMaxRank; }
};

// What the sweep found in one piece, in index order, and what it has committed. The arrays lie in the memory of the worker that
// swept it; `where` counts from `begin`.
struct PieceLists {
  // Candidates that were inactive. The key is what is left to order them by: the rank of the score, or where scores tie
  // (rank_ties) that of the signal.
  uint32_t *grow_key = nullptr, *grow_where = nullptr;
  // Active weights near zero; regrow_key: their key as candidates, if they may grow again.
  uint32_t *drop_key = nullptr, *drop_where = nullptr, *regrow_key = nullptr;
  size_t grow_count = 0, drop_count = 0;
  // Committed: candidates that were inactive, active weights that were dropped, and such as stay, grown again.
  size_t grown = 0, gone = 0, back = 0;
  uint32_t *undo_w = nullptr, *undo_m = nullptr;  // the bits of the weights and momenta that went
  uint8_t* before = nullptr;                      // the mask as it was, in whole words of 8 bytes
  int64_t begin = 0;
  bool overflow = false;  // neither listed nor committed: there was no room
};

// An array of keys.
struct Keys {
  const uint32_t* key;
  size_t count;
};

// Free memory of one worker.
struct Arena {
  uint32_t *grow_key, *grow_where, *drop_key, *drop_where, *regrow_key, *undo_w, *undo_m;
  size_t grow_left, drop_left;
};
constexpr size_t kReserve = kPiece + 64;  // any piece fits into that

struct Lists {
  // `share` of the room: 1 but for tests.
  Lists(const Update& u, std::vector<Bounds> bounds_of_layers, double share);

  struct Pieces {
    PieceLists *first, *last;
    PieceLists* begin() const { return first; }
    PieceLists* end() const { return last; }
  };
  Pieces of_layer(int layer) {
    const auto i = static_cast<size_t>(layer);
    return {pieces.data() + first_piece[i], pieces.data() + first_piece[i + 1]};
  }
  // Room for what select_* gathers of the layer: two arrays for each of its pieces.
  Keys* scratch(int layer) { return &keys[static_cast<size_t>(2 * first_piece[static_cast<size_t>(layer)])]; }

  // Its lists last no longer than its turn: the next layer's take their place.
  static bool is_one_piece(const Layer& layer) { return layer.n <= kPiece; }

  int64_t entries() const;

  std::vector<Bounds> bounds;                      // by layer
  std::vector<PieceLists> pieces;                  // by piece
  std::vector<int64_t> first_piece;                // by layer, and one more
  std::vector<Threshold<uint32_t, int64_t>> grow;  // by layer: the last candidate that is grown
  std::vector<Keys> keys;                          // two for each piece
  std::vector<Arena> arenas;                       // by worker
  std::vector<uint32_t*> packed;                   // by layer: room for its packed momenta, with slack behind each piece's
  Rows after;                                      // of the masks after the update
  Workspace memory;
};

}  // namespace dstee::cpu
