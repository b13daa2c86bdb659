#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>
#include <unicode/uspoof.h>
#include <unicode/ustring.h>

#include <algorithm>
#include <memory>

#include "apps/safeguards/screen.h"
#include "tensor/error.h"

namespace rivulet {
namespace {

using icu::Normalizer2;
using icu::UnicodeString;

void check_icu(UErrorCode code) { check(U_SUCCESS(code), "screen: ICU failed: ", u_errorName(code)); }

UnicodeString from_utf8(const std::string& text) {
  UErrorCode code = U_ZERO_ERROR;
  int32_t length = 0;
  u_strFromUTF8(nullptr, 0, &length, text.data(), int32_t(text.size()), &code);
  check(code == U_BUFFER_OVERFLOW_ERROR || U_SUCCESS(code), "screen: the text is not UTF-8");
  return UnicodeString::fromUTF8(text);
}

// The Latin letters or digits that a character looks like; empty when it looks like none.
UnicodeString latin_look_alike(UChar32 c) {
  static const std::unique_ptr<USpoofChecker, void (*)(USpoofChecker*)> spoof = [] {
    UErrorCode code = U_ZERO_ERROR;
    USpoofChecker* checker = uspoof_open(&code);
    check_icu(code);
    return std::unique_ptr<USpoofChecker, void (*)(USpoofChecker*)>(checker, uspoof_close);
  }();
  UErrorCode code = U_ZERO_ERROR;
  UnicodeString skeleton;
  uspoof_getSkeletonUnicodeString(spoof.get(), 0, UnicodeString(c), skeleton, &code);
  check_icu(code);
  for (int32_t i = 0; i < skeleton.length(); ++i)
    if (skeleton[i] > 127 || !u_isalnum(skeleton[i])) return {};
  return skeleton;
}

UnicodeString replace_look_alikes(const UnicodeString& text) {
  UnicodeString result;
  for (int32_t i = 0; i < text.length(); i = text.moveIndex32(i, 1)) {
    const UChar32 c = text.char32At(i);
    const UnicodeString latin = c > 127 ? latin_look_alike(c) : UnicodeString();
    latin.isEmpty() ? result.append(c) : result.append(latin);
  }
  return result;
}

UnicodeString without_marks(const UnicodeString& text) {
  UnicodeString result;
  for (int32_t i = 0; i < text.length(); i = text.moveIndex32(i, 1)) {
    const UChar32 c = text.char32At(i);
    const int8_t kind = u_charType(c);
    if (kind != U_NON_SPACING_MARK && kind != U_ENCLOSING_MARK && kind != U_FORMAT_CHAR) result.append(c);
  }
  return result;
}

UnicodeString plain(const UnicodeString& text) {
  UErrorCode code = U_ZERO_ERROR;
  const Normalizer2 *nfkc = Normalizer2::getNFKCInstance(code), *nfd = Normalizer2::getNFDInstance(code),
                    *fold = Normalizer2::getNFKCCasefoldInstance(code);
  check_icu(code);
  // Look-alikes are replaced before case is folded, for a letter may look like a Latin one in one case only,
  // and after its marks are gone.
  UnicodeString s = without_marks(nfd->normalize(nfkc->normalize(text, code), code));
  s = replace_look_alikes(s);
  s = without_marks(nfd->normalize(fold->normalize(s, code), code));
  check_icu(code);
  return replace_look_alikes(s).foldCase();
}

bool is_letter_sign(UChar32 c) {
  return c < 128 ? std::string("@$!|+").find(char(c)) != std::string::npos : c == 0x20AC;
}

std::string utf8(const UnicodeString& s) {
  std::string text;
  s.toUTF8String(text);
  return text;
}

}  // namespace

std::vector<std::string> plain_words(const std::string& text) {
  const UnicodeString s = plain(from_utf8(text)) + UnicodeString(u' ');
  std::vector<std::string> words;
  std::vector<UnicodeString> alone;  // the run of single letters before
  const auto end_of_run = [&] {
    if (alone.size() >= 3) {
      UnicodeString joined;
      for (const UnicodeString& c : alone) joined += c;
      words.push_back(utf8(joined));
      // "make a b o m b": the article is no part of the word.
      if (joined[0] == u'a') words.push_back(utf8(joined.tempSubString(1)));
    } else {
      for (const UnicodeString& c : alone) words.push_back(utf8(c));
    }
    alone.clear();
  };
  UnicodeString word;
  for (int32_t i = 0; i < s.length(); i = s.moveIndex32(i, 1)) {
    const UChar32 c = s.char32At(i);
    if (u_isalnum(c) || is_letter_sign(c)) {
      word.append(c);
      continue;
    }
    if (word.countChar32() == 1) {
      alone.push_back(word);
    } else if (!word.isEmpty()) {
      end_of_run();
      words.push_back(utf8(word));
    }
    word.remove();
  }
  end_of_run();
  return words;
}

}  // namespace rivulet
