#include "checkpoints/virtual_tensors.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/check.h"

namespace lockstep {

std::vector<MatrixBlock> blocks_of_run(int64_t begin, int64_t end, int64_t columns) {
  std::vector<MatrixBlock> blocks;
  while (begin < end) {
    const int64_t row = begin / columns, column = begin % columns;
    const bool whole_rows = column == 0 && end - begin >= columns;
    const int64_t rows = whole_rows ? (end - begin) / columns : 1;
    const int64_t width = whole_rows ? columns : std::min(columns - column, end - begin);
    blocks.push_back({row, column, rows, width});
    begin += rows * width;
  }
  return blocks;
}

namespace {

// Maps the run of `parameter` that lies in `range` of a shard, which stands at `place` there.
void map_range(hid_t creation, const Parameter& parameter, const Shard& shard, const Range& range,
               int64_t place, const std::string& source) {
  const int64_t begin = std::max(parameter.offset, range.begin);
  const int64_t end = std::min(parameter.end(), range.end);
  if (begin >= end) return;
  const Shape& shape = parameter.shape;
  const int64_t columns = shape[shape.rank() - 1];
  const hdf5::Handle whole = hdf5::create_dataspace(shape);
  const hdf5::Handle flat = hdf5::create_dataspace({shard.size()});
  auto at = static_cast<hsize_t>(place + begin - range.begin);
  for (const MatrixBlock& block :
       blocks_of_run(begin - parameter.offset, end - parameter.offset, columns)) {
    const std::array<hsize_t, 2> start{static_cast<hsize_t>(block.row),
                                       static_cast<hsize_t>(block.column)};
    const std::array<hsize_t, 2> count{static_cast<hsize_t>(block.rows),
                                       static_cast<hsize_t>(block.columns)};
    const int skip = 2 - shape.rank();  // a vector is one row
    const hsize_t elements = count[0] * count[1];
    CHECK_HDF5(H5Sselect_hyperslab(whole, H5S_SELECT_SET, start.data() + skip, nullptr,
                                   count.data() + skip, nullptr));
    CHECK_HDF5(H5Sselect_hyperslab(flat, H5S_SELECT_SET, &at, nullptr, &elements, nullptr));
    CHECK_HDF5(H5Pset_virtual(creation, whole, shard.name.c_str(), source.c_str(), flat));
    at += elements;
  }
}

void add_virtual_tensor(hid_t group, const Parameter& parameter, const std::vector<Shard>& shards,
                        const std::string& source) {
  CHECK(parameter.shape.rank() == 1 || parameter.shape.rank() == 2, "{} has shape {}",
        parameter.name, parameter.shape.to_string());
  const hdf5::Handle creation(CHECK_HDF5(H5Pcreate(H5P_DATASET_CREATE)), H5Pclose);
  CHECK_HDF5(H5Pset_layout(creation, H5D_VIRTUAL));
  const float missing = std::numeric_limits<float>::quiet_NaN();
  CHECK_HDF5(H5Pset_fill_value(creation, H5T_NATIVE_FLOAT, &missing));
  for (const Shard& shard : shards) {
    int64_t place = 0;
    for (const Range& range : shard.ranges) {
      map_range(creation, parameter, shard, range, place, source);
      place += range.size();
    }
  }
  const hdf5::Handle space = hdf5::create_dataspace(parameter.shape);
  const hdf5::Handle dataset(CHECK_HDF5(H5Dcreate2(group, parameter.name.c_str(), H5T_IEEE_F32LE,
                                                   space, H5P_DEFAULT, creation, H5P_DEFAULT)),
                             H5Dclose);
}

}  // namespace

void add_virtual_tensors(hid_t file, const ParameterTable& table,
                         const std::vector<Shard>& shards) {
  struct View {
    const char *group, *source;
  };
  for (const View& view : {View{"model", "weights"}, View{"optimizer/exp_avg", "exp_avg"},
                           View{"optimizer/exp_avg_sq", "exp_avg_sq"}}) {
    const hdf5::Handle group = hdf5::create_group(file, view.group);
    for (const Parameter& parameter : table.parameters()) {
      add_virtual_tensor(group, parameter, shards, view.source);
    }
  }
}

}  // namespace lockstep
