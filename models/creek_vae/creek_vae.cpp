#include "models/creek_vae/creek_vae.h"

#include <filesystem>

namespace rivulet {
namespace {

struct Half {
  int64_t width = 0, mid_layers = 0;
  std::vector<VideoVaeConfig::Stage> stages;
};

Half read_half(Fields f) {
  Half half;
  f.required("width", half.width, between(1, 65536));
  f.required("mid_layers", half.mid_layers, between(0, 64));
  for (Fields& s : f.objects("stages")) {
    VideoVaeConfig::Stage stage{};
    std::vector<int64_t> stride;
    s.required("layers", stage.layers, between(0, 64));
    s.required("stride", stride, between(1, 2));
    check(stride.size() == 3, s.where("stride"), " must hold 3 numbers, not ", stride.size());
    check(stride[1] == stride[2], s.where("stride"), " must be the same in height and width");
    stage.stride = {stride[0], stride[1], stride[2]};
    s.required("width", stage.width, between(1, 65536));
    s.done();
    half.stages.push_back(stage);
  }
  f.done();
  return half;
}

Json to_json(int64_t width, int64_t mid_layers, const std::vector<VideoVaeConfig::Stage>& stages) {
  Json list = Json::array();
  for (const auto& s : stages)
    list.push_back({{"layers", s.layers}, {"stride", s.stride}, {"width", s.width}});
  return {{"width", width}, {"mid_layers", mid_layers}, {"stages", list}};
}

constexpr const char* kBorders[] = {"zeros", "reflect", "replicate"};

}  // namespace

CreekVaeConfig read_creek_vae_config(Fields f) {
  CreekVaeConfig c;
  f.required("name", c.name);
  f.required("latent_channels", c.vae.latent_channels, between(1, 4096));
  f.required("patch", c.vae.patch, between(1, 64));
  std::string border = "replicate";
  f.choice("border", border, {kBorders[0], kBorders[1], kBorders[2]});
  for (int i = 0; i < 3; ++i)
    if (border == kBorders[i]) c.vae.encoder_border = c.vae.decoder_border = Border(i);
  c.vae.decoder_causal = true;
  f.optional("decoder_causal", c.vae.decoder_causal);
  const Half encoder = read_half(f.object("encoder")), decoder = read_half(f.object("decoder"));
  c.vae.encoder_width = encoder.width;
  c.vae.encoder_mid_layers = encoder.mid_layers;
  c.vae.encoder = encoder.stages;
  c.vae.decoder_width = decoder.width;
  c.vae.decoder_mid_layers = decoder.mid_layers;
  c.vae.decoder = decoder.stages;
  f.done();
  return c;
}

Json to_json(const CreekVaeConfig& c) {
  const VideoVaeConfig& v = c.vae;
  return {{"name", c.name},
          {"latent_channels", v.latent_channels},
          {"patch", v.patch},
          {"border", kBorders[int(v.decoder_border)]},
          {"decoder_causal", v.decoder_causal},
          {"encoder", to_json(v.encoder_width, v.encoder_mid_layers, v.encoder)},
          {"decoder", to_json(v.decoder_width, v.decoder_mid_layers, v.decoder)}};
}

CreekVae CreekVae::load(const std::string& dir, Device device) {
  const std::string path = dir + "/config.json";
  CreekVae creek(read_creek_vae_config(Fields(read_json(path), path)), device);
  load_tensors(named_tensors(creek.vae), SafeTensors(dir + "/weights.safetensors"));
  pack_convs(creek.vae);
  return creek;
}

void CreekVae::save(const std::string& dir, DType dtype) {
  std::map<std::string, Tensor> weights;
  for (const auto& [name, t] : named_tensors(vae))
    weights[name] = t.detach().to(Device::cpu).contiguous().to(dtype);
  std::filesystem::create_directories(dir);
  save_safetensors(dir + "/weights.safetensors", weights);
  write_file(dir + "/config.json", to_json(config).dump(2) + "\n");
}

}  // namespace rivulet
