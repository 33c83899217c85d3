#include "checkpoints/checkpoint.h"
#include "checkpoints/model_file.h"

namespace lockstep {

void export_h5(const Checkpoint& checkpoint, const std::filesystem::path& output) {
  checkpoint.require_whole_weights("an export");
  write_model_file(output, checkpoint.info(),
                   [&](const Parameter& parameter, const Tensor& values) {
                     checkpoint.read(FlatKind::weights, parameter.offset, values);
                   });
}

}  // namespace lockstep
