#pragma once
#include <array>
#include <vector>

#include "checkpoints/step_folder.h"

namespace lockstep {

// A block of a matrix: rows [row, row + rows) by columns [column, column + columns).
struct MatrixBlock {
  int64_t row, column, rows, columns;
};

// Elements [begin, end) of a row-major matrix with `columns` columns as blocks, in order: the rest
// of a row, whole rows, the start of a row; at most three.
std::vector<MatrixBlock> blocks_of_run(int64_t begin, int64_t end, int64_t columns);

// Adds a virtual dataset for every tensor: /model/NAME, /optimizer/exp_avg/NAME and
// /optimizer/exp_avg_sq/NAME, of its shape, made of runs of the shards' flat datasets. What no
// shard provides reads as NaN.
void add_virtual_tensors(hid_t file, const ParameterTable& table, const std::vector<Shard>& shards);

}  // namespace lockstep
