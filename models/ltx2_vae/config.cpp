#include "models/ltx2_vae/config.h"

namespace rivulet {

int64_t VideoVaeConfig::spatial() const {
  int64_t n = patch;
  for (const Stage& s : encoder) n *= s.stride[1];
  return n;
}

int64_t VideoVaeConfig::temporal() const {
  int64_t n = 1;
  for (const Stage& s : encoder) n *= s.stride[0];
  return n;
}

namespace {

BlockSize stride_named(const std::string& name, const std::string& source) {
  if (name == "spatial") return {1, 2, 2};
  if (name == "temporal") return {2, 1, 1};
  check(name == "spatiotemporal", source, ": downsample_type \"", name, "\" is not known");
  return {2, 2, 2};
}

// Parts that this build has no code for must be off.
void refuse_variants(const Json& j, const std::string& source) {
  const auto is_off = [](const Json& v) {
    for (const Json& x : v.is_array() ? v : Json::array({v}))
      if (x.is_boolean() && x.get<bool>()) return false;
    return true;
  };
  for (const char* name : {"timestep_conditioning", "decoder_inject_noise"})
    if (j.contains(name)) check(is_off(j[name]), source, ": ", name, " is not supported");
  check(j.value("encoder_causal", true), source, ": encoder_causal must be true");
  check(j.value("patch_size_t", 1) == 1, source, ": patch_size_t must be 1");
}

Border border_named(const std::string& name, const std::string& source) {
  check(name == "zeros" || name == "reflect", source, ": padding mode \"", name, "\" is not known");
  return name == "zeros" ? Border::zeros : Border::reflect;
}

}  // namespace

VideoVaeConfig ltx2_vae_config(const Json& j, const std::string& source) {
  using List = std::vector<int64_t>;
  VideoVaeConfig c;
  try {
    refuse_variants(j, source);
    const List widths = j.value("block_out_channels", List{256, 512, 1024, 2048}),
               layers = j.value("layers_per_block", List{4, 6, 6, 2, 2}),
               up_widths = j.value("decoder_block_out_channels", List{256, 512, 1024}),
               up_layers = j.value("decoder_layers_per_block", List{5, 5, 5, 5});
    const auto types =
        j.value("downsample_type",
                std::vector<std::string>{"spatial", "temporal", "spatiotemporal", "spatiotemporal"});
    check(layers.size() == widths.size() + 1 && types.size() == widths.size(), source,
          ": block_out_channels, downsample_type and layers_per_block do not fit");
    check(up_layers.size() == up_widths.size() + 1 && !up_widths.empty(), source,
          ": decoder_block_out_channels and decoder_layers_per_block do not fit");
    c.latent_channels = j.value("latent_channels", c.latent_channels);
    c.patch = j.value("patch_size", c.patch);
    c.encoder_width = c.latent_channels;
    for (size_t i = 0; i < widths.size(); ++i)
      c.encoder.push_back({layers[i], stride_named(types[i], source), widths[i]});
    c.encoder_mid_layers = layers.back();
    // The decoder's lists start at the pixels.
    c.decoder_width = up_widths.back();
    c.decoder_mid_layers = up_layers.back();
    for (size_t i = up_widths.size(); i-- > 0;)
      c.decoder.push_back({up_layers[i], {2, 2, 2}, up_widths[i] / 2});
    c.encoder_border = border_named(j.value("encoder_spatial_padding_mode", "zeros"), source);
    c.decoder_border = border_named(j.value("decoder_spatial_padding_mode", "reflect"), source);
    c.decoder_causal = j.value("decoder_causal", false);
  } catch (const Json::exception& e) {
    fail(source, ": ", e.what());
  }
  return c;
}

VideoVaeConfig ltx2_vae_config() { return ltx2_vae_config(Json::object(), "LTX-2"); }

}  // namespace rivulet
