// Files that come with the program.
#pragma once

#include <string>

namespace rivulet {

// The folder of a bundled model: models/NAME above the program in a source tree, or share/rivulet/models/NAME
// where it is installed. Throws when it is in neither place.
std::string bundled_model(const std::string& name = "brook");
// A cost file of the policy search, by its name: "bits", "rtx5090".
std::string bundled_cost(const std::string& name);

}  // namespace rivulet
