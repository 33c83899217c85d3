#include "launch/same_tokenizer.h"

namespace lockstep::launch {

void check_same_tokenizer(const Checkpoint& checkpoint, const Dataset& dataset) {
  const Tokenizer tokenizer = Tokenizer::from_json(checkpoint.info().tokenizer_json);
  if (tokenizer.fingerprint() == dataset.tokenizer().fingerprint()) return;
  const std::string model = checkpoint.path().string();
  throw DataError(
      "the dataset {} was prepared with another tokenizer than that of the model {}\n"
      "prepare the text again with the model's: 'lockstep checkpoint export {} --format hf "
      "--output "
      "MODEL', then 'lockstep prepare --tokenizer MODEL ...'",
      dataset.folder().string(), model, model);
}

}  // namespace lockstep::launch
