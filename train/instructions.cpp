#include "train/instructions.h"

#include <map>
#include <set>

namespace rivulet {
namespace {

// Words in capitals are filled in: FROM and TO with colours, KIND with an object, LOOK with a look's name.
// The first sentence of a list is the canonical one.
using Templates = std::vector<std::string>;

const std::map<std::string, Templates>& look_templates() {
  static const std::map<std::string, Templates> table = {
      {"night",
       {"make it night", "make it look like night", "turn day into night", "change the scene to night",
        "make it look like it was filmed at night", "night time", "set the scene at night", "make it dark",
        "turn this into a night scene", "make the picture dark and blue like moonlight", "it should be night",
        "show it at midnight", "moonlight", "let it be night", "give it a night look",
        "make it look like midnight", "make the video look like a dark night"}},
      {"sepia",
       {"make it sepia", "turn it sepia", "make it look like an old photo", "give it a sepia tone",
        "make it look old and brown", "old photo", "make it look like an antique photograph", "a sepia look",
        "turn this into an old brown photograph", "make the video vintage",
        "give the picture a vintage brown tone", "apply a sepia filter", "make it look like a vintage film",
        "change it to sepia", "sepia"}},
      {"sketch",
       {"turn it into a pencil sketch", "draw it as a pencil sketch", "draw this as a pencil sketch",
        "make it a sketch", "make it look like a pencil drawing", "make it look hand drawn",
        "sketch the scene with a pencil", "turn this into a drawing", "pencil sketch",
        "a drawing of the scene", "make the video look like a sketch", "draw the scene in pencil",
        "sketch it", "draw it", "change it to a line drawing", "give it a sketch look"}},
      {"black_and_white",
       {"make it black and white", "turn it black and white", "remove the colour",
        "take away all the colours", "make it grey", "turn everything grey",
        "make it look like a black and white film", "black and white", "change it to black and white",
        "make the picture monochrome", "apply a black and white filter", "show it without colour",
        "make the video grey", "give it a black and white look", "no colours just black and white"}},
      {"sunset",
       {"make it look like sunset", "make it sunset", "give it a golden sunset look",
        "make it warm and golden", "turn it into a sunset", "set the scene at sunset", "golden hour",
        "make it glow like a sunset", "change the light to sunset",
        "make the picture warm like the evening sun", "sunset", "show it in warm evening light",
        "make it look like golden hour", "bathe it in warm golden light", "it should be sunset"}},
      {"negative",
       {"invert the colours", "make it a negative", "turn it into a negative", "show the negative",
        "invert it", "make it look like a film negative", "invert the picture", "invert all the colours",
        "swap light and dark", "negative", "change it to a negative", "apply a negative filter",
        "make the video negative", "give it a negative look", "invert everything"}},
      {"cartoon",
       {"turn it into a cartoon", "make it a cartoon", "make it look like a cartoon", "draw it as a cartoon",
        "cartoon", "make the video look like a cartoon", "change it to a cartoon", "give it a cartoon look",
        "make it look like a comic", "turn this into a comic", "apply a cartoon filter",
        "show it as a cartoon", "make the scene a cartoon with strong colours"}},
  };
  return table;
}

const Templates kUndoLook = {"undo the LOOK look",      "remove the LOOK look",
                             "take the LOOK look away", "bring back the original",
                             "restore the original",    "make it look normal again",
                             "go back to the original", "remove the LOOK filter",
                             "show the original again", "turn the LOOK back into the original",
                             "make it normal",          "bring the original colours back"};

const Templates kRecolour = {"make the FROM things TO",
                             "turn the FROM things TO",
                             "change everything FROM to TO",
                             "change FROM to TO",
                             "turn FROM into TO",
                             "make everything that is FROM TO",
                             "paint the FROM things TO",
                             "recolour the FROM things TO",
                             "replace FROM with TO",
                             "all FROM things should be TO",
                             "change the colour of the FROM things to TO",
                             "make FROM TO",
                             "turn everything FROM to TO",
                             "turn all the FROM to TO",
                             "FROM to TO",
                             "swap the FROM for TO",
                             "make the FROM parts TO",
                             "paint everything FROM TO",
                             "let the FROM objects be TO",
                             "change the FROM objects to TO",
                             "make all FROM objects TO",
                             "colour the FROM things TO",
                             "the FROM things become TO",
                             "make the FROM one TO"};

const Templates kKeep = {"leave it alone",
                         "do nothing",
                         "keep it as it is",
                         "change nothing",
                         "do not change anything",
                         "dont change anything",
                         "leave it as it is",
                         "leave the video as it is",
                         "keep everything the same",
                         "no change",
                         "no edit",
                         "just copy it",
                         "do not edit it",
                         "leave everything as it was",
                         "keep the original",
                         "nothing",
                         "keep the picture the same",
                         "show it without any change"};

const Templates kObject = {
    "make the KIND TO",          "turn the KIND TO",      "paint the KIND TO",
    "recolour the KIND to TO",   "change the KIND to TO", "change the colour of the KIND to TO",
    "the KIND should be TO",     "make the FROM KIND TO", "turn the FROM KIND TO",
    "paint the FROM KIND TO",    "colour the KIND TO",    "let the KIND be TO",
    "change the FROM KIND to TO"};

const Templates kRemove = {"remove the KIND",         "take the KIND away",
                           "delete the KIND",         "take away the FROM KIND",
                           "remove the FROM KIND",    "make the KIND disappear",
                           "get rid of the KIND",     "erase the KIND",
                           "the KIND should be gone", "show the scene without the KIND",
                           "let the KIND vanish",     "hide the KIND"};

const Templates kInsert = {"add a FROM KIND",
                           "put a FROM KIND into the scene",
                           "show a FROM KIND",
                           "insert a FROM KIND",
                           "place a FROM KIND in the picture",
                           "draw a FROM KIND",
                           "bring the FROM KIND back",
                           "let a FROM KIND appear"};

const Templates kAddRing = {
    "put a TO ring around the KIND",  "add a TO ring around the KIND",   "draw a TO ring around the KIND",
    "circle the KIND in TO",          "give the KIND a TO ring",         "surround the KIND with a TO ring",
    "add a TO ring to the KIND",      "place a TO ring around the KIND", "mark the KIND with a TO ring",
    "the KIND should wear a TO ring", "show a TO ring around the KIND",  "let a TO ring follow the KIND"};

const Templates kRemoveRing = {"remove the ring around the KIND",
                               "take the ring off the KIND",
                               "delete the TO ring",
                               "remove the TO ring",
                               "erase the ring around the KIND",
                               "take away the TO ring"};

const Templates kBefore = {"please", "could you", "can you", "now", "i want you to", "please just"};
const Templates kAfter = {"please", "now", "thanks", "in the video", "in this clip"};

std::string filled(std::string text, const std::string& slot, const std::string& word) {
  for (size_t at; (at = text.find(slot)) != std::string::npos;) text.replace(at, slot.size(), word);
  return text;
}

std::string words_of(const std::string& look) { return filled(look, "_", " "); }

std::string fill(const std::string& text, const Edit& edit) {
  std::string s = filled(filled(text, "FROM", name_of(edit.from)), "TO", name_of(edit.to));
  return filled(filled(s, "KIND", name_of(edit.kind)), "LOOK", words_of(edit.look));
}

const Templates& asking(const Edit& edit) {
  switch (edit.family) {
    case Family::look: {
      const auto it = look_templates().find(edit.look);
      check(it != look_templates().end(), "instruction: there is no look \"", edit.look, "\"");
      return it->second;
    }
    case Family::recolour:
      return kRecolour;
    case Family::keep:
      return kKeep;
    case Family::object:
      return kObject;
    case Family::remove:
      return kRemove;
    case Family::add:
      return kAddRing;
  }
  fail("instruction: no family ", static_cast<int>(edit.family));
}

const Templates& undoing(const Edit& edit) {
  switch (edit.family) {
    case Family::look:
      return kUndoLook;
    case Family::remove:
      return kInsert;
    case Family::add:
      return kRemoveRing;
    default:
      return asking(edit);  // with the colours swapped
  }
}

Edit swapped(Edit edit) {
  if (edit.family == Family::recolour || edit.family == Family::object) std::swap(edit.from, edit.to);
  return edit;
}

const std::string& pick(const Templates& list, Rng& rng) { return list[rng.below(int64_t(list.size()))]; }

// One sentence in three comes with a courtesy in front or behind.
std::string polite(const std::string& text, Rng& rng) {
  const double u = rng.uniform();
  if (u < 0.2) return pick(kBefore, rng) + " " + text;
  if (u < 0.33) return text + " " + pick(kAfter, rng);
  return text;
}

}  // namespace

std::string instruction(const Edit& edit, Rng& rng) {
  return polite(fill(pick(asking(edit), rng), edit), rng);
}

std::string inverse_instruction(const Edit& edit, Rng& rng) {
  return polite(fill(pick(undoing(edit), rng), swapped(edit)), rng);
}

std::string canonical_instruction(const Edit& edit) { return fill(asking(edit).front(), edit); }

std::vector<std::string> all_instructions(const Edit& edit) {
  std::vector<std::string> list;
  for (const std::string& text : asking(edit)) list.push_back(fill(text, edit));
  return list;
}

Vocabulary instruction_vocabulary() {
  std::set<std::string> words;
  const auto add = [&](const Templates& list) {
    for (const std::string& text : list) {
      std::string plain = text;
      for (const char* slot : {"FROM", "TO", "KIND", "LOOK"}) plain = filled(plain, slot, " ");
      for (const std::string& word : tokenize(plain)) words.insert(word);
    }
  };
  for (const auto& [look, list] : look_templates()) {
    add(list);
    add({words_of(look)});
  }
  for (const Templates* list : {&kUndoLook, &kRecolour, &kKeep, &kObject, &kRemove, &kInsert, &kAddRing,
                                &kRemoveRing, &kBefore, &kAfter})
    add(*list);
  for (int i = 0; i < kColours; ++i) words.insert(name_of(static_cast<Colour>(i)));
  for (int i = 0; i < kKinds; ++i) words.insert(name_of(static_cast<Kind>(i)));
  return Vocabulary({words.begin(), words.end()});
}

}  // namespace rivulet
