#include "train/edit.h"

#include <algorithm>

namespace rivulet {

const char* name_of(Family family) {
  constexpr const char* kNames[kFamilies] = {"look", "recolour", "keep", "object", "remove", "add"};
  return kNames[static_cast<int>(family)];
}

const char* name_of(Kind kind) {
  constexpr const char* kNames[kKinds] = {"square", "disc", "triangle", "ring", "star"};
  return kNames[static_cast<int>(kind)];
}

std::string Edit::name() const {
  switch (family) {
    case Family::look:
      return look;
    case Family::recolour:
      return std::string(name_of(from)) + "_to_" + name_of(to);
    case Family::keep:
      return "keep";
    case Family::object:
      return std::string(name_of(kind)) + "_to_" + name_of(to);
    case Family::remove:
      return std::string("remove_") + name_of(kind);
    case Family::add:
      return std::string("ring_on_") + name_of(kind);
  }
  fail("edit: no family ", static_cast<int>(family));
}

Edit edit_named(const std::string& name) {
  for (const Edit& edit : footage_edits())
    if (edit.name() == name) return edit;
  fail("edit: \"", name, "\" is neither \"keep\", nor a look, nor <colour>_to_<colour>");
}

std::vector<Edit> footage_edits() {
  std::vector<Edit> edits = {{.family = Family::keep}};
  for (const std::string& look : look_names()) edits.push_back({.family = Family::look, .look = look});
  for (int from = 0; from < kColours; ++from)
    for (int to = 0; to < kColours; ++to)
      if (from != to)
        edits.push_back(
            {.family = Family::recolour, .from = static_cast<Colour>(from), .to = static_cast<Colour>(to)});
  return edits;
}

EditResult apply_edit(const Tensor& pixels, const Edit& edit) {
  check(pixels.dims() == 4, "apply_edit: needs pixels [F, H, W, 3], got ", pixels.shape());
  const Shape plane{pixels.dim(0), pixels.dim(1), pixels.dim(2)};
  switch (edit.family) {
    case Family::look:
      return {apply_look(pixels, edit.look), ones(plane)};
    case Family::recolour: {
      Recoloured result = recolour(pixels, edit.from, edit.to);
      return {result.pixels, result.mask};
    }
    case Family::keep:
      return {pixels, zeros(plane)};
    default:
      fail("apply_edit: ", edit.name(), " needs a synthetic scene");
  }
}

}  // namespace rivulet
