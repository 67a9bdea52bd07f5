// The stages of drop_grow_ on the CPU in their order, a file each. CONTRIBUTING.md says what holds after each.
#pragma once

#include "lists.h"
#include "update.h"

namespace dstee::cpu {

Bounds sample(const Update& u, int layer);

// One piece: the step, where asked for; then what surely changes is committed, what may change listed.
void sweep(const Update& u, Lists& lists, int64_t piece, int worker);

// False: the bounds or the room for lists did not hold, only the fallback finds the selected weights, after undo().
// Afterwards the drop lists of the layer hold the dropped weights that are not committed, and no others.
bool select_drop(const Update& u, Lists& lists, int layer);
// Afterwards lists.grow parts the candidates of the layer, the dropped ones among them.
bool select_grow(const Update& u, Lists& lists, int layer);

// One piece of a layer whose selections succeeded: the rest of it.
void commit(const Update& u, Lists& lists, int64_t piece);

// One piece of a layer whose selections did not: masks, counters, weights and momenta are as after the step.
void undo(const Update& u, Lists& lists, int64_t piece);

// Select and commit one layer without lists: any input, no memory, so that it cannot fail.
void fallback(const Update& u, const Lists& lists, int layer);

// Packed momenta of all layers, of which the stages before have only cleared those of regrown weights: in the rows of the masks
// as they are now, 0 where nothing was active before.
void repack(const Update& u, Lists& lists);

}  // namespace dstee::cpu
