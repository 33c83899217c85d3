#include "launch/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

namespace lockstep::launch {
namespace {

using ::testing::HasSubstr;

struct Fields {
  int64_t steps = 7;
  std::optional<int64_t> layers;
  double rate = 0.5;
  bool fresh = false;
  std::string name;
  std::filesystem::path data, where;
  std::vector<std::string> prompts;
  std::vector<std::filesystem::path> inputs;
  enum class Color { red, blue } color = Color::red;
};

OptionTable table_of(Fields& f, bool positional = false) {
  OptionTable table("lockstep test", "[OPTION]...", "Tests.");
  table.group("First");
  table.add("steps", integer(f.steps, 1, 100), "steps in all (default 7)");
  table.add("layers", integer(f.layers, 1), "layers; of the model");
  table.add("learning-rate", real(f.rate, {0, 1, true, false}), "rate");
  table.add("fresh", flag(f.fresh), "anew");
  table.group("Second");
  table.add("name", text(f.name, "NAME"), "a name");
  table.add("data", path(f.data, "DIR"), "a folder");
  table.add("prompt", texts(f.prompts, "TEXT"), "prompts");
  table.add("input", paths(f.inputs, "PATH..."), "inputs");
  table.add("color", choice(f.color, {{"red", Fields::Color::red}, {"blue", Fields::Color::blue}}),
            "a color", InConfigFile::no);
  if (positional) table.positional("WHERE", f.where);
  return table;
}

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no error";
}

std::string parse_error(const std::vector<std::string>& arguments) {
  Fields f;
  OptionTable table = table_of(f);
  return error_of([&] { table.parse(arguments); });
}

class ConfigFile {
 public:
  explicit ConfigFile(const std::string& content)
      : path_(std::filesystem::temp_directory_path() /
              ("lockstep-options-" + std::to_string(getpid()) + ".cfg")) {
    std::ofstream(path_) << content;
  }
  ~ConfigFile() { std::filesystem::remove(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

TEST(Options, AreReadFromTheCommandLine) {
  Fields f;
  OptionTable table = table_of(f, true);
  table.parse({"--steps", "9", "--learning-rate=1e-3", "--fresh", "there", "--prompt", "a b",
               "--prompt", "--not-an-option", "--input", "x", "y", "--color", "blue"});
  EXPECT_EQ(f.steps, 9);
  EXPECT_EQ(f.rate, 1e-3);
  EXPECT_TRUE(f.fresh);
  EXPECT_EQ(f.where, "there");
  EXPECT_EQ(f.prompts, (std::vector<std::string>{"a b", "--not-an-option"}));
  EXPECT_EQ(f.inputs, (std::vector<std::filesystem::path>{"x", "y"}));
  EXPECT_EQ(f.color, Fields::Color::blue);
  EXPECT_TRUE(table.given("steps"));
  EXPECT_FALSE(table.given("layers"));
  EXPECT_FALSE(f.layers.has_value());
}

TEST(Options, NameTheNearestOfAnUnknownOne) {
  EXPECT_EQ(parse_error({"--setps", "9"}), "unknown option --setps; did you mean --steps?");
  EXPECT_EQ(parse_error({"--learning_rate", "9"}),
            "unknown option --learning_rate; did you mean --learning-rate?");
  EXPECT_EQ(parse_error({"--learn=9"}), "unknown option --learn=9; did you mean --learning-rate?");
  EXPECT_EQ(parse_error({"-steps", "9"}), "unknown option -steps; did you mean --steps?");
  EXPECT_THAT(parse_error({"--xyzzy", "9"}), HasSubstr("'lockstep test --help' lists"));
}

TEST(Options, DoNotGuessAbbreviations) {
  EXPECT_THAT(parse_error({"--step", "9"}), HasSubstr("unknown option --step"));
}

TEST(Options, RefuseValuesThatDoNotFit) {
  EXPECT_EQ(parse_error({"--steps", "0"}), "--steps 0: a whole number from 1 to 100 is needed");
  EXPECT_EQ(parse_error({"--steps", "1.5"}), "--steps 1.5: a whole number from 1 to 100 is needed");
  EXPECT_EQ(parse_error({"--steps", "9x"}), "--steps 9x: a whole number from 1 to 100 is needed");
  EXPECT_EQ(parse_error({"--steps", ""}), "--steps '': a whole number from 1 to 100 is needed");
  EXPECT_EQ(parse_error({"--steps", "-3"}), "--steps -3: a whole number from 1 to 100 is needed");
  EXPECT_EQ(parse_error({"--layers", "99999999999999999999"}),
            "--layers 99999999999999999999: a whole number of at least 1 is needed");
  EXPECT_EQ(parse_error({"--learning-rate", "0"}),
            "--learning-rate 0: a number above 0 and at most 1 is needed");
  EXPECT_EQ(parse_error({"--learning-rate", "nan"}),
            "--learning-rate nan: a number above 0 and at most 1 is needed");
  EXPECT_EQ(parse_error({"--color", "bleu"}),
            "--color bleu: one of red, blue is needed; did you mean blue?");
  EXPECT_EQ(parse_error({"--data", ""}), "--data '': a path is needed");
}

TEST(Options, RefuseWhatIsGivenTwiceOrNotAtAll) {
  EXPECT_EQ(parse_error({"--steps", "3", "--steps", "4"}), "--steps is given twice; give it once");
  EXPECT_EQ(parse_error({"--fresh", "--fresh"}), "--fresh is given twice; give it once");
  EXPECT_THAT(parse_error({"--steps"}), HasSubstr("--steps needs a value"));
  EXPECT_THAT(parse_error({"--steps", "--fresh"}), HasSubstr("--steps needs a value"));
  EXPECT_EQ(parse_error({"--fresh=no"}), "--fresh takes no value");
  EXPECT_THAT(parse_error({"stray"}), HasSubstr("'stray' is not expected here"));
  Fields f;
  OptionTable table = table_of(f, true);
  EXPECT_THAT(error_of([&] { table.parse({}); }), HasSubstr("WHERE is missing"));
  EXPECT_EQ(error_of([&] { table.require("layers"); }), "--layers N is missing: layers");
}

TEST(Options, FromAFileYieldToTheCommandLine) {
  const ConfigFile file(
      "# a comment\n\nsteps = 5  # unit\n  layers=3\nfresh = true\n"
      "name = \"a # b\"\n");
  Fields f;
  OptionTable table = table_of(f);
  table.parse({"--steps", "9"});
  table.read_file(file.path());
  EXPECT_EQ(f.steps, 9);
  EXPECT_EQ(f.layers, 3);
  EXPECT_TRUE(f.fresh);
  EXPECT_EQ(f.name, "a # b");
  EXPECT_EQ(table.origin("layers"), file.path().string() + ":4: layers");
}

TEST(Options, FromAFileAreNamedWithTheirLine) {
  const auto file_error = [](const std::string& content) {
    const ConfigFile file(content);
    Fields f;
    OptionTable table = table_of(f);
    std::string message = error_of([&] { table.read_file(file.path()); });
    const auto place = message.find(file.path().string());
    if (place != std::string::npos) message.replace(place, file.path().string().size(), "FILE");
    return message;
  };
  EXPECT_EQ(file_error("steps = 5\nlayer = 3\n"),
            "FILE:2: unknown option 'layer'; did you mean layers?");
  EXPECT_EQ(file_error("steps = 0\n"), "FILE:1: steps 0: a whole number from 1 to 100 is needed");
  EXPECT_EQ(file_error("steps = 5\nsteps = 6\n"), "FILE:2: steps is given twice; give it once");
  EXPECT_EQ(file_error("steps 5\n"), "FILE:1: expected 'name = value', found 'steps 5'");
  EXPECT_EQ(file_error("color = red\n"), "FILE:1: 'color' works on the command line only");
  Fields f;
  OptionTable table = table_of(f);
  EXPECT_THAT(error_of([&] { table.read_file("/no/such/file"); }), HasSubstr("/no/such/file"));
}

TEST(Options, WrittenToAFileReadBackTheSame) {
  Fields f;
  f.layers = 12;
  f.rate = 0.1 + 0.2;
  f.name = "has # and spaces ";
  f.data = "/some where/data";
  OptionTable table = table_of(f);
  const ConfigFile file(table.to_config_file("# heading\n"));
  Fields g;
  OptionTable again = table_of(g);
  again.read_file(file.path());
  EXPECT_EQ(g.steps, f.steps);
  EXPECT_EQ(g.layers, f.layers);
  EXPECT_EQ(g.rate, f.rate);
  EXPECT_EQ(g.name, f.name);
  EXPECT_EQ(g.data, f.data);
  EXPECT_FALSE(again.given("color"));
}

TEST(Options, HelpIsGroupedAndFitsTheWidth) {
  Fields f;
  const std::string help = table_of(f).help();
  std::istringstream lines(help);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 100u) << line;
  EXPECT_LT(help.find("First"), help.find("--steps"));
  EXPECT_LT(help.find("--fresh"), help.find("Second"));
}

TEST(Nearest, CountsEditsAndSwaps) {
  const std::vector<std::string> names{"layers", "heads", "steps"};
  EXPECT_EQ(nearest("layesr", names), "layers");  // one swap
  EXPECT_EQ(nearest("head", names), "heads");
  EXPECT_EQ(nearest("step", names), "steps");
  EXPECT_EQ(nearest("qwerty", names), std::nullopt);
  // One slip is nearer than a beginning in common, and that nearer than two slips.
  EXPECT_EQ(nearest("gelu-tanh", {"tanh", "gelu", "gelu_tanh"}), "gelu_tanh");
  EXPECT_EQ(nearest("clip", {"flap", "clip-norm"}), "clip-norm");
  EXPECT_EQ(nearest("3", {"8", "4"}), std::nullopt);  // nothing in common
}

}  // namespace
}  // namespace lockstep::launch
