// An edit as data: what an instruction asks for, and its exact result on real footage.
#pragma once

#include <string>
#include <vector>

#include "train/looks.h"

namespace rivulet {

// look: the whole picture. recolour: everything of one colour. keep: nothing at all. The other three act on
// one synthetic object and need its scene: object (paint one kind of object), remove, add (a ring around it).
enum class Family { look, recolour, keep, object, remove, add };
inline constexpr int kFamilies = 6;
const char* name_of(Family family);

enum class Kind { square, disc, triangle, ring, star };
inline constexpr int kKinds = 5;
const char* name_of(Kind kind);

// Only the fields of the family mean something.
struct Edit {
  Family family = Family::keep;
  std::string look = {};                        // look
  Colour from = Colour::red, to = Colour::red;  // recolour; object paints to `to`, was `from`
  Kind kind = Kind::square;                     // object, remove, add

  // "night", "red_to_blue", "keep", "square_to_blue", "remove_square", "ring_on_square"
  std::string name() const;
};

// The reverse of name() for the families that work on any footage: look, recolour, keep.
Edit edit_named(const std::string& name);
// Every such edit.
std::vector<Edit> footage_edits();

struct EditResult {
  Tensor pixels;  // f32 [F, H, W, 3]
  Tensor mask;    // f32 [F, H, W]: how much of each pixel the edit concerns; 0 means left exactly alone
};
// The exact result on pixels f32 [F, H, W, 3]; look, recolour and keep only.
EditResult apply_edit(const Tensor& pixels, const Edit& edit);

}  // namespace rivulet
