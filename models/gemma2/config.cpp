#include "models/gemma2/config.h"

#include "tensor/error.h"

namespace rivulet {
namespace {

bool given(const Json& json, const std::string& name) {
  return json.contains(name) && !json.at(name).is_null();
}

std::vector<bool> windowed_layers(Fields& f, int64_t depth) {
  std::vector<bool> windowed;
  if (!f.has("layer_types")) {
    for (int64_t i = 0; i < depth; ++i) windowed.push_back(i % 2 == 0);
    return windowed;
  }
  std::vector<std::string> types;
  f.required("layer_types", types);
  check(int64_t(types.size()) == depth, f.where("layer_types"), ": ", types.size(),
        " layers, num_hidden_layers is ", depth);
  for (const std::string& type : types) {
    check(type == "sliding_attention" || type == "full_attention", f.where("layer_types"), ": '", type,
          "' is neither sliding_attention nor full_attention");
    windowed.push_back(type == "sliding_attention");
  }
  return windowed;
}

}  // namespace

Gemma2Config read_gemma2_config(const Json& json, const std::string& source) {
  Fields f(json, source);
  std::string kind, activation = "gelu_pytorch_tanh";
  f.required("model_type", kind);
  check(kind == "gemma2", f.where("model_type"), ": '", kind, "', wanted 'gemma2'");
  Gemma2Config c;
  f.required("vocab_size", c.vocabulary, between(1, 1 << 24));
  f.required("hidden_size", c.width, between(1, 65536));
  f.required("num_hidden_layers", c.depth, between(1, 1000));
  f.required("num_attention_heads", c.heads, between(1, 1024));
  f.required("num_key_value_heads", c.kv_heads, between(1, 1024));
  f.required("head_dim", c.head_dim, between(2, 4096));
  f.required("intermediate_size", c.mlp, between(1, 1 << 20));
  f.optional("rms_norm_eps", c.norm_eps, between(0, 1));
  f.optional("query_pre_attn_scalar", c.query_scale, above(0));
  f.optional("sliding_window", c.window, at_least(1));
  if (given(json, "attn_logit_softcapping")) f.required("attn_logit_softcapping", c.soft_cap, above(0));
  if (given(json, "rope_parameters")) {
    Fields rope = f.object("rope_parameters");
    std::string type = "default";
    rope.optional("rope_type", type);
    check(type == "default", rope.where("rope_type"), ": '", type, "', wanted 'default'");
    rope.optional("rope_theta", c.rope_theta, above(0));
  } else {
    f.optional("rope_theta", c.rope_theta, above(0));
  }
  f.optional("hidden_activation", activation);
  check(activation == "gelu_pytorch_tanh", f.where("hidden_activation"), ": '", activation,
        "', wanted 'gelu_pytorch_tanh'");
  bool bias = false;
  f.optional("attention_bias", bias);
  check(!bias, f.where("attention_bias"), ": layers with biases are not known");
  check(c.heads % c.kv_heads == 0, f.where("num_key_value_heads"), ": ", c.heads, " heads do not share ",
        c.kv_heads, " evenly");
  check(c.head_dim % 2 == 0, f.where("head_dim"), ": ", c.head_dim, " is odd");
  c.windowed = windowed_layers(f, c.depth);
  return c;
}

}  // namespace rivulet
