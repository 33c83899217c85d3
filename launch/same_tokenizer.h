#pragma once
#include "checkpoints/checkpoint.h"
#include "data/dataset.h"

namespace lockstep::launch {

// Throws DataError, with the way to mend it, when the dataset's ids mean other text than the
// model's.
void check_same_tokenizer(const Checkpoint& checkpoint, const Dataset& dataset);

}  // namespace lockstep::launch
