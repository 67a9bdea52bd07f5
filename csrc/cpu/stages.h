// The stages of drop_grow_ on the CPU in their order, a file each. CONTRIBUTING.md says what holds after each.
#pragma once

#include "lists.h"
#include "update.h"

namespace dstee::cpu {

Bounds sample(const Update& u, int layer);

// One piece: the step, where asked for, then the lists.
void sweep(const Update& u, Lists& lists, int64_t piece, int worker);

// False: the lists do not hold the selected weights, only the fallback finds them. Nothing has been written then but lists.
// Afterwards the drop lists of the layer hold the k dropped weights and no others.
bool select_drop(const Update& u, Lists& lists, int layer);
// Afterwards lists.grow parts the candidates of the layer, the dropped ones among them.
bool select_grow(const Update& u, Lists& lists, int layer);

// One piece of a layer whose selections succeeded.
void commit(const Update& u, Lists& lists, int64_t piece);

// Select and commit one layer without lists: any input, no memory, so that it cannot fail.
void fallback(const Update& u, int layer);

}  // namespace dstee::cpu
