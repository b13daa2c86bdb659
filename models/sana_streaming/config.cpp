#include "models/sana_streaming/config.h"

#include <algorithm>

#include "tensor/error.h"

namespace rivulet {

bool DitConfig::is_softmax(int64_t block) const {
  return std::find(softmax_blocks.begin(), softmax_blocks.end(), block) != softmax_blocks.end();
}

DitConfig read_dit_config(Fields& f) {
  DitConfig c;
  f.choice("variant", c.variant, {"streaming", "bidirectional"});
  f.required("depth", c.depth, between(1, 1000));
  f.required("width", c.width, between(2, 65536));
  f.required("heads", c.heads, between(1, 1024));
  f.required("softmax_blocks", c.softmax_blocks, from_below(0, double(c.depth)));
  f.optional("mlp_ratio", c.mlp_ratio, between(1, 16));
  f.required("latent_channels", c.latent_channels, between(1, 65536));
  f.required("caption_channels", c.caption_channels, between(1, 65536));
  f.optional("chunk_frames", c.chunk_frames, between(1, 1024));
  f.optional("cached_chunks", c.cached_chunks, between(-1, 1024));
  f.optional("sink", c.sink);
  check(c.width % c.heads == 0 && c.width / c.heads % 2 == 0, f.where("heads"), ": width ", c.width, " over ",
        c.heads, " heads is not an even head dim");
  return c;
}

Json to_json(const DitConfig& c) {
  return {{"variant", c.variant},
          {"depth", c.depth},
          {"width", c.width},
          {"heads", c.heads},
          {"softmax_blocks", c.softmax_blocks},
          {"mlp_ratio", c.mlp_ratio},
          {"latent_channels", c.latent_channels},
          {"caption_channels", c.caption_channels},
          {"chunk_frames", c.chunk_frames},
          {"cached_chunks", c.cached_chunks},
          {"sink", c.sink}};
}

}  // namespace rivulet
