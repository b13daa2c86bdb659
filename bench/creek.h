// What training and running creek costs on a GPU, with random weights and random latents.
#pragma once

#include <nlohmann/json.hpp>

namespace rivulet::bench {

// Steps of every stage at the sizes of models/creek/train_*.json, the autoencoder around them, and the steady
// pass of a 640x360 stream; bf16. Prints a line each.
nlohmann::json time_creek(int repetitions);

}  // namespace rivulet::bench
