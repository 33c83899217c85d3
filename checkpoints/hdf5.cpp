#include "checkpoints/hdf5.h"

#include <array>
#include <limits>

#include "checkpoints/checkpoint.h"
#include "core/check.h"

namespace lockstep::hdf5 {
namespace {

std::recursive_mutex& library_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

// Keeps the innermost description: the stack is walked from the call that we made to the cause.
herr_t keep_description(unsigned, const H5E_error2_t* error, void* data) {
  if (error->desc != nullptr) *static_cast<std::string*>(data) = error->desc;
  return 0;
}

Handle type_of_text(size_t size) {
  Handle type(CHECK_HDF5(H5Tcopy(H5T_C_S1)), H5Tclose);
  CHECK_HDF5(H5Tset_size(type, size));
  CHECK_HDF5(H5Tset_cset(type, H5T_CSET_UTF8));
  CHECK_HDF5(H5Tset_strpad(type, H5T_STR_NULLPAD));
  return type;
}

// The type that h5py reads as a boolean.
Handle type_of_boolean() {
  Handle type(CHECK_HDF5(H5Tenum_create(H5T_NATIVE_INT8)), H5Tclose);
  const int8_t no = 0, yes = 1;
  CHECK_HDF5(H5Tenum_insert(type, "FALSE", &no));
  CHECK_HDF5(H5Tenum_insert(type, "TRUE", &yes));
  return type;
}

hid_t hdf5_type(NumberType type) {
  switch (type) {
    case NumberType::float32:
      return H5T_IEEE_F32LE;
    case NumberType::uint8:
      return H5T_STD_U8LE;
    case NumberType::uint32:
      return H5T_STD_U32LE;
    case NumberType::uint64:
      return H5T_STD_U64LE;
  }
  CHECK(false);
}

void write_attribute(hid_t object, const std::string& name, hid_t type, const void* value) {
  const Handle space = create_dataspace({});
  const Handle attribute(
      CHECK_HDF5(H5Acreate2(object, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT)),
      H5Aclose);
  CHECK_HDF5(H5Awrite(attribute, type, value));
}

void write_text_attribute(hid_t object, const std::string& name, const std::string& text) {
  const Handle type = type_of_text(H5T_VARIABLE);
  const char* value = text.c_str();
  write_attribute(object, name, type, &value);
}

}  // namespace

Session::Session() : lock_(library_mutex()) {
  CHECK_HDF5(H5open());
  CHECK_HDF5(H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr));
}

void call_failed(const char* expression, const char* file, int line) {
  std::string reason = "no reason given";
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, keep_description, &reason);
  lockstep::detail::check_failed(expression, file, line, "HDF5: " + reason);
}

Handle create_group(hid_t parent, const std::string& path) {
  const Handle links(CHECK_HDF5(H5Pcreate(H5P_LINK_CREATE)), H5Pclose);
  CHECK_HDF5(H5Pset_create_intermediate_group(links, 1));
  return {CHECK_HDF5(H5Gcreate2(parent, path.c_str(), links, H5P_DEFAULT, H5P_DEFAULT)), H5Gclose};
}

Handle open_group(hid_t parent, const std::string& path) {
  return {CHECK_HDF5(H5Gopen2(parent, path.c_str(), H5P_DEFAULT)), H5Gclose};
}

Handle create_dataspace(const Shape& shape) {
  if (shape.rank() == 0) return {CHECK_HDF5(H5Screate(H5S_SCALAR)), H5Sclose};
  std::array<hsize_t, Shape::kMaxRank> dims{};
  for (int i = 0; i < shape.rank(); i++) dims[i] = static_cast<hsize_t>(shape[i]);
  return {CHECK_HDF5(H5Screate_simple(shape.rank(), dims.data(), nullptr)), H5Sclose};
}

void write_attributes(hid_t object, const nlohmann::json& values, const std::string& prefix) {
  for (const auto& [key, value] : values.items()) {
    const std::string name = prefix + key;
    if (value.is_object()) {
      write_attributes(object, value, name + ".");
    } else if (value.is_boolean()) {
      const int8_t boolean = value.get<bool>() ? 1 : 0;
      write_attribute(object, name, type_of_boolean(), &boolean);
    } else if (value.is_number_float()) {
      const auto number = value.get<double>();
      write_attribute(object, name, H5T_NATIVE_DOUBLE, &number);
    } else if (value.is_number_unsigned() &&
               value.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()}) {
      const auto number = value.get<uint64_t>();
      write_attribute(object, name, H5T_NATIVE_UINT64, &number);
    } else if (value.is_number()) {
      const auto number = value.get<int64_t>();
      write_attribute(object, name, H5T_NATIVE_INT64, &number);
    } else if (value.is_string()) {
      write_text_attribute(object, name, value.get<std::string>());
    } else if (!value.is_null()) {
      write_text_attribute(object, name, value.dump());
    }
  }
}

HdfImage::HdfImage(uint64_t user_block_bytes) : session_(std::in_place) {
  const Handle creation(CHECK_HDF5(H5Pcreate(H5P_FILE_CREATE)), H5Pclose);
  CHECK_HDF5(H5Pset_userblock(creation, user_block_bytes));
  const Handle access(CHECK_HDF5(H5Pcreate(H5P_FILE_ACCESS)), H5Pclose);
  keep_in_memory(access, bytes_);
  file_ = std::make_unique<Handle>(
      CHECK_HDF5(H5Fcreate("image.h5", H5F_ACC_TRUNC, creation, access)), H5Fclose);
}

HdfImage::~HdfImage() { file_.reset(); }

uint64_t HdfImage::reserve(const std::string& path, hid_t type, hid_t space) {
  const Handle links(CHECK_HDF5(H5Pcreate(H5P_LINK_CREATE)), H5Pclose);
  CHECK_HDF5(H5Pset_create_intermediate_group(links, 1));
  const Handle creation(CHECK_HDF5(H5Pcreate(H5P_DATASET_CREATE)), H5Pclose);
  CHECK_HDF5(H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY));
  CHECK_HDF5(H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER));
  const Handle dataset(
      CHECK_HDF5(H5Dcreate2(file(), path.c_str(), type, space, links, creation, H5P_DEFAULT)),
      H5Dclose);
  if (H5Sget_simple_extent_npoints(space) == 0) return 0;
  const haddr_t offset = H5Dget_offset(dataset);
  CHECK(offset != HADDR_UNDEF, "{} has no place in the file", path);
  return offset;
}

uint64_t HdfImage::reserve(const std::string& path, NumberType type, const Shape& shape) {
  return reserve(path, hdf5_type(type), create_dataspace(shape));
}

uint64_t HdfImage::write_text(const std::string& path, const std::string& text) {
  const Handle type = type_of_text(text.size());
  const uint64_t offset = reserve(path, type, create_dataspace({}));
  const Handle dataset(CHECK_HDF5(H5Dopen2(file(), path.c_str(), H5P_DEFAULT)), H5Dclose);
  CHECK_HDF5(H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, text.data()));
  return offset;
}

uint64_t HdfImage::finish() {
  file_->close();
  session_.reset();
  return bytes_.size();
}

}  // namespace lockstep::hdf5

namespace lockstep {

std::string hdf5_version() {
  unsigned major = 0, minor = 0, patch = 0;
  H5get_libversion(&major, &minor, &patch);
  return fmt::format("{}.{}.{}", major, minor, patch);
}

}  // namespace lockstep
