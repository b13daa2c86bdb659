#include "apps/train_data.h"

#include "apps/frames.h"

namespace rivulet {

RenderedData read_rendered_data(Fields fields, const TrainConfig& config) {
  std::string path;
  fields.optional("footage", path);
  std::vector<std::string> sizes;
  fields.optional("sizes", sizes);
  Fields mix = fields.object("mix");
  fields.done();
  std::shared_ptr<const Footage> footage;
  if (!path.empty()) footage = std::make_shared<const Footage>(Footage::open(path));
  RenderedData data{ShapeEdit(ShapeEditConfig::read(mix), footage), {}};
  for (const std::string& text : sizes) {
    const FrameSize size = parse_size(text);
    data.sizes.push_back({config.frames, size.height, size.width});
  }
  if (sizes.empty()) data.sizes.push_back({config.frames, config.height, config.width});
  return data;
}

EditModelConfig trained_model_config(const TrainConfig& config, const std::string& source) {
  Json model = config.model;
  if (!model.contains("vocabulary")) model["vocabulary"] = instruction_vocabulary().to_json();
  return read_edit_model_config(Fields(model, source + ": model"));
}

}  // namespace rivulet
