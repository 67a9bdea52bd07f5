// A block's memory and its guards, what warp operations compute, and why a launch is stuck.
#pragma once

#include "state.h"

namespace cuda_host {

// Prepares the slot for the next block: all threads ready, memory poisoned.
void start_block(Block& b, unsigned index, unsigned threads, size_t dynamic_bytes, uint64_t poison);
void place_static(Block& b, size_t bytes, size_t align);

// Empty, or what was written where nothing of the block's lies.
std::string broken_guard(const Block& b);

// Leaves each lane's result of the operation that all lanes of the mask have reached.
void combine(Meeting kind, unsigned mask, Fiber* const* lanes);

// Empty, or who waits in this block for what.
std::string deadlock(const Block& b);

}  // namespace cuda_host
