// Screening of instructions: the plain form, rules against spelling tricks, and the external classifier.
#include <chrono>

#include "apps/safeguards/classifier.h"
#include "apps/safeguards/screen.h"
#include "tests/video_fixtures.h"

using namespace rivulet;
using Words = std::vector<std::string>;

TEST_CASE("plain words: case, width, accents, look-alikes, invisible characters, spacing") {
  CHECK(plain_words("Make IT Night!") == Words{"make", "it", "night!"});
  CHECK(plain_words("ＭＡＫＥ") == Words{"make"});
  CHECK(plain_words("𝐦𝐚𝐤𝐞") == Words{"make"});
  CHECK(plain_words("nùdé") == Words{"nude"});
  CHECK(plain_words("n\u0443de") == Words{"nyde"});         // Cyrillic u looks like y
  CHECK(plain_words("\u043Dude") != Words{"nude"});         // and Cyrillic n looks like H, not n
  CHECK(plain_words("nu\u0501\u0435") == Words{"nude"});    // Komi de, Cyrillic ie
  CHECK(plain_words("nu\u200Bd\u00ADe") == Words{"nude"});  // zero-width space, soft hyphen
  CHECK(plain_words("b o m b") == Words{"bomb"});
  CHECK(plain_words("b-o-m-b") == Words{"bomb"});
  CHECK(plain_words("make a b o m b now") == Words{"make", "abomb", "bomb", "now"});
  CHECK(plain_words("plan b") == Words{"plan", "b"});
  CHECK(plain_words("").empty());
  CHECK_THROWS_AS(plain_words("night \xff"), Error);
}

TEST_CASE("readings of a word") {
  const auto reads = [](const std::string& word, const std::string& as) {
    const Words r = readings(word);
    return std::find(r.begin(), r.end(), as) != r.end();
  };
  CHECK(reads("b0mb", "bomb"));
  CHECK(reads("k1ll", "kill"));
  CHECK(reads("k!ll!", "kill"));
  CHECK(reads("he11", "hell"));
  CHECK(reads("kiiill", "kill"));
  CHECK(reads("night!", "night"));
  CHECK_FALSE(reads("455", "ass"));  // a number is a number
}

TEST_CASE("screen: rules are found in every disguise and named") {
  const Screen screen(default_safeguards().screen);
  for (const char* text : {"behead him", "BEHEADING", "b3head the man", "be-head him", "b e h e a d",
                           "bеhеad", "ｂｅｈｅａｄ", "beheeeead him", "b.e.h.e.a.d"}) {
    CAPTURE(text);
    const auto found = screen.find(text);
    REQUIRE(found);
    CHECK(found->category == "violence");
    CHECK(found->rule == "violence/behead*");
  }
  CHECK(screen.find("remove  her -- clothes")->rule == "sexual/remove her clothes");
  CHECK(screen.find("remove the watermark")->category == "deception");
  CHECK(screen.find(std::string(401, 'a'))->rule == "text/length");
  CHECK(screen.find("night \xc3\x28")->rule == "text/encoding");
}

TEST_CASE("screen: what is harmless passes") {
  const Screen screen(default_safeguards().screen);
  for (const char* text : {"make it night", "kill the lights", "turn the dress nude colour",
                           "a bottle of essex cider in Scunthorpe", "shoot it like a western",
                           "paint the sky blood orange", "make the grass blue", "remove her hat",
                           "cast him in bronze", "turn the 455 red", "add a black cat"}) {
    CAPTURE(text);
    CHECK_FALSE(screen.find(text));
  }
}

TEST_CASE("screen: its own rules, allowed phrases, and bad ones") {
  ScreenConfig c;
  c.rules = {{"test", {"red car*", "x1"}}};
  c.allowed = {"red carpet"};
  const Screen screen(c);
  CHECK(screen.find("a red cars")->rule == "test/red car*");
  CHECK_FALSE(screen.find("roll out the red carpet"));
  CHECK(screen.find("the red carpet and a red car"));
  CHECK_FALSE(screen.find("a red bus"));
  c.rules = {{"test", {"***"}}};
  CHECK_THROWS_AS(Screen{c}, Error);
  c.enabled = false;
  c.rules = {{"test", {"red"}}};
  CHECK_FALSE(Screen(c).find("red"));
}

namespace {
Verdict ask(const std::string& script, const std::string& policy = "refuse", double seconds = 5) {
  return ask_classifier({{"sh", "-c", script}, seconds, policy}, "make it\nnight");
}
}  // namespace

TEST_CASE("classifier: its answers") {
  CHECK(ask("echo allow").allowed);
  const Verdict no = ask("read line; echo \"refuse saw $line\"");
  CHECK_FALSE(no.allowed);
  CHECK_FALSE(no.failed);
  CHECK(no.reason == "saw make it night");
}

TEST_CASE("classifier: a failure is what the policy says, and takes no longer than the limit") {
  for (const char* script : {"exit 3", "echo maybe", "echo allow; exit 1", "true", "echo allowed"}) {
    CAPTURE(script);
    const Verdict refuse = ask(script), allow = ask(script, "allow");
    CHECK(refuse.failed);
    CHECK_FALSE(refuse.allowed);
    CHECK(allow.failed);
    CHECK(allow.allowed);
  }
  CHECK(ask_classifier({{"/no/such/program"}, 1, "refuse"}, "x").failed);
  for (const char* script :
       {"sleep 30", "exec >&-; sleep 30", "echo allow; sleep 30", "trap '' TERM; sleep 30"}) {
    CAPTURE(script);
    const auto start = std::chrono::steady_clock::now();
    const Verdict late = ask(script, "refuse", 0.3);
    CHECK(late.failed);
    CHECK_FALSE(late.allowed);
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
  }
}
