#include "trainer/profile_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>

#include "core/text.h"

namespace lockstep {
namespace {

bool is_row(const Span& span) {
  return span.kind == Span::Kind::work || span.kind == Span::Kind::wait;
}

double seconds(const Span& span) { return 1e-9 * static_cast<double>(span.end_ns - span.begin_ns); }

std::string row_name(const Work& work) {
  if (work.product.rows == 0) return std::string(work.name);
  return fmt::format("{} {}x{}x{}", work.name, work.product.rows, work.product.cols,
                     work.product.inner);
}

ProfileTotals::Row& row_of(ProfileTotals& totals, const std::string& name, bool beside) {
  const auto found = std::find_if(totals.rows.begin(), totals.rows.end(), [&](const auto& row) {
    return row.name == name && row.beside == beside;
  });
  if (found != totals.rows.end()) return *found;
  ProfileTotals::Row& row = totals.rows.emplace_back();
  row.name = name, row.beside = beside;
  return row;
}

ProfileTotals::Stage& stage_of(ProfileTotals& totals, const std::string& path) {
  const auto found = std::find_if(totals.stages.begin(), totals.stages.end(),
                                  [&](const auto& stage) { return stage.path == path; });
  if (found != totals.stages.end()) return *found;
  return totals.stages.emplace_back(ProfileTotals::Stage{path});
}

// Adds the rows of a track. What is within another row is taken out of that one.
void add_rows(ProfileTotals& totals, const Track& track) {
  for (const Span& span : track.spans) {
    int64_t outer = span.parent;
    const auto at = [&](int64_t i) -> const Span& { return track.spans[static_cast<size_t>(i)]; };
    while (outer >= 0 && !is_row(at(outer))) outer = at(outer).parent;
    if (span.kind == Span::Kind::idle && outer >= 0) {
      row_of(totals, row_name(at(outer).work), !track.computes).idle_seconds += seconds(span);
    }
    if (!is_row(span)) continue;
    ProfileTotals::Row& row = row_of(totals, row_name(span.work), !track.computes);
    row.calls++;
    row.seconds += seconds(span);
    row.bytes += span.work.bytes;
    row.flops += span.work.flops;
    row.link = span.work.unit == Unit::link;
    if (outer >= 0) {
      row_of(totals, row_name(at(outer).work), !track.computes).seconds -= seconds(span);
    }
  }
}

// The same of the stages of a thread.
void add_stages(ProfileTotals& totals, const Track& track) {
  std::vector<std::string> paths(track.spans.size());  // of the innermost stage
  for (size_t i = 0; i < track.spans.size(); i++) {
    const Span& span = track.spans[i];
    const std::string outer = span.parent < 0 ? "" : paths[static_cast<size_t>(span.parent)];
    const bool stage = span.kind == Span::Kind::stage;
    paths[i] =
        !stage ? outer : fmt::format("{}{}{}", outer, outer.empty() ? "" : "/", span.work.name);
    // Within a row, the row accounts for it.
    const bool direct =
        span.parent < 0 || track.spans[static_cast<size_t>(span.parent)].kind == Span::Kind::stage;
    if (direct && !outer.empty() && (stage || is_row(span))) {
      stage_of(totals, outer).own_seconds -= seconds(span);
    }
    if (!stage) continue;
    ProfileTotals::Stage& own = stage_of(totals, paths[i]);
    own.seconds += seconds(span);
    own.own_seconds += seconds(span);
  }
}

}  // namespace

void ProfileTotals::add(const ProfileTotals& other) {
  workers += other.workers;
  step_seconds += other.step_seconds;
  for (const Row& theirs : other.rows) {
    Row& row = row_of(*this, theirs.name, theirs.beside);
    row.calls += theirs.calls;
    row.seconds += theirs.seconds;
    row.idle_seconds += theirs.idle_seconds;
    row.bytes += theirs.bytes;
    row.flops += theirs.flops;
    row.link = theirs.link;
  }
  for (const Stage& theirs : other.stages) {
    Stage& stage = stage_of(*this, theirs.path);
    stage.seconds += theirs.seconds;
    stage.own_seconds += theirs.own_seconds;
  }
}

ProfileTotals profile_totals(const std::vector<Track>& tracks) {
  ProfileTotals totals;
  for (const Track& track : tracks) {
    add_rows(totals, track);
    const bool steps = std::any_of(track.spans.begin(), track.spans.end(),
                                   [](const Span& span) { return span.work.name == "step"; });
    if (!steps) continue;
    add_stages(totals, track);
    for (const Span& span : track.spans) {
      if (span.work.name != "step") continue;
      totals.steps++;
      totals.step_seconds += seconds(span);
    }
  }
  return totals;
}

nlohmann::json to_json(const ProfileTotals& totals) {
  nlohmann::json json{{"steps", totals.steps}, {"step_seconds", totals.step_seconds}};
  json["rows"] = nlohmann::json::array();
  for (const auto& row : totals.rows) {
    json["rows"].push_back({{"name", row.name},
                            {"beside", row.beside},
                            {"calls", row.calls},
                            {"seconds", row.seconds},
                            {"idle_seconds", row.idle_seconds},
                            {"bytes", row.bytes},
                            {"flops", row.flops},
                            {"link", row.link}});
  }
  json["stages"] = nlohmann::json::array();
  for (const auto& stage : totals.stages) {
    json["stages"].push_back({stage.path, stage.seconds, stage.own_seconds});
  }
  return json;
}

ProfileTotals profile_totals_from_json(const nlohmann::json& json) {
  ProfileTotals totals;
  totals.steps = json.at("steps");
  totals.step_seconds = json.at("step_seconds");
  for (const auto& row : json.at("rows")) {
    totals.rows.push_back({row.at("name"), row.at("beside"), row.at("calls"), row.at("seconds"),
                           row.at("idle_seconds"), row.at("bytes"), row.at("flops"),
                           row.at("link")});
  }
  for (const auto& stage : json.at("stages")) {
    totals.stages.push_back({stage.at(0), stage.at(1), stage.at(2)});
  }
  return totals;
}

namespace {

// The longest name of a row, and of a column of numbers.
constexpr int kNameColumns = 44;

struct Formatter {
  double steps;  // of all workers
  double step_ms;
  const MachineRates& machine;

  std::string line(const ProfileTotals::Row& row) const {
    const double ms = 1e3 * row.seconds / steps;
    std::string text = fmt::format("  {:<{}}{:>7.0f}{:>10.3f}{:>7.1f}", row.name, kNameColumns,
                                   static_cast<double>(row.calls) / steps, ms, 100 * ms / step_ms);
    const auto rate = [&](double amount) {
      return amount > 0 && row.seconds > 0 ? fmt::format("{:>9.1f}", 1e-9 * amount / row.seconds)
                                           : fmt::format("{:>9}", "");
    };
    text += rate(row.flops) + rate(row.bytes);
    if (row.seconds > 0 && row.idle_seconds > 0.005 * row.seconds) {
      text += fmt::format("{:>7.0f}", 100 * row.idle_seconds / row.seconds);
    } else {
      text += fmt::format("{:>7}", "");
    }
    return text + limit(row) + "\n";
  }

  // By what the machine would need longest for.
  std::string limit(const ProfileTotals::Row& row) const {
    if (row.link || row.seconds <= 0 || row.bytes <= 0) return "";
    const double products_s = row.flops / machine.product_flops;
    const double memory_s = row.bytes / machine.memory_bytes;
    return fmt::format("{:>7.0f} % of {}", 100 * std::max(products_s, memory_s) / row.seconds,
                       products_s > memory_s ? "products" : "memory");
  }
};

std::vector<ProfileTotals::Row> by_time(const std::vector<ProfileTotals::Row>& rows, bool beside) {
  std::vector<ProfileTotals::Row> chosen;
  for (const auto& row : rows) {
    if (row.beside == beside) chosen.push_back(row);
  }
  std::stable_sort(chosen.begin(), chosen.end(),
                   [](const auto& a, const auto& b) { return a.seconds > b.seconds; });
  return chosen;
}

std::string stages_text(const ProfileTotals& totals, double steps) {
  std::string text = fmt::format("\n  {:<{}}{:>7}{:>10}{:>7}{:>18}\n", "stages of the host",
                                 kNameColumns, "", "ms", "%", "in no kernel, ms");
  for (const auto& stage : totals.stages) {
    const auto depth = static_cast<size_t>(std::count(stage.path.begin(), stage.path.end(), '/'));
    const std::string name =
        std::string(2 * depth, ' ') + stage.path.substr(stage.path.rfind('/') + 1);
    text += fmt::format("  {:<{}}{:>7}{:>10.3f}{:>7.1f}{:>18.3f}\n", name, kNameColumns, "",
                        1e3 * stage.seconds / steps, 100 * stage.seconds / totals.step_seconds,
                        1e3 * stage.own_seconds / steps);
  }
  return text;
}

}  // namespace

std::string profile_table(const ProfileTotals& totals, const MachineRates& machine) {
  if (totals.steps == 0) return "";
  const double steps = static_cast<double>(totals.steps * totals.workers);
  const Formatter format{steps, 1e3 * totals.step_seconds / steps, machine};
  std::string text = fmt::format(
      "Mean of {}{}. The machine, as measured{}: {:.1f} GFLOP/s in products, {:.1f} GB/s of "
      "memory.\n\n",
      plural(totals.steps, "step"),
      totals.workers == 1 ? "" : fmt::format(" of each of {} workers", totals.workers),
      totals.workers == 1 ? "" : ", a worker's share", 1e-9 * machine.product_flops,
      1e-9 * machine.memory_bytes);
  text += fmt::format("  {:<{}}{:>7}{:>10}{:>7}{:>9}{:>9}{:>7}{:>11}\n", "", kNameColumns, "calls",
                      "ms", "%", "GFLOP/s", "GB/s", "idle %", "rate");
  double in_rows = 0;
  for (const auto& row : by_time(totals.rows, false)) {
    text += format.line(row);
    in_rows += row.seconds;
  }
  const auto sum_line = [&](std::string_view name, double seconds) {
    const double ms = 1e3 * seconds / steps;
    text += fmt::format("  {:<{}}{:>7}{:>10.3f}{:>7.1f}\n", name, kNameColumns, "", ms,
                        100 * ms / format.step_ms);
  };
  sum_line("in no kernel", totals.step_seconds - in_rows);
  sum_line("step", totals.step_seconds);
  const auto beside = by_time(totals.rows, true);
  if (!beside.empty()) text += "\n  at the same time, by others\n";
  for (const auto& row : beside) text += format.line(row);
  return text + stages_text(totals, steps);
}

namespace {

std::string_view category(const Span& span) {
  switch (span.kind) {
    case Span::Kind::stage:
      return "stage";
    case Span::Kind::work:
      return span.work.unit == Unit::link ? "collective" : "kernel";
    case Span::Kind::wait:
    case Span::Kind::idle:
      return "wait";
    case Span::Kind::enqueue:
      return "enqueue";
  }
  return "";
}

std::string event_text(const Span& span, int worker, size_t track) {
  const auto microseconds = [](int64_t ns) { return 1e-3 * static_cast<double>(ns); };
  nlohmann::ordered_json event{
      {"ph", "X"},
      {"pid", worker},
      {"tid", track},
      {"name",
       span.number < 0 ? row_name(span.work) : fmt::format("{} {}", span.work.name, span.number)},
      {"cat", category(span)},
      {"ts", microseconds(span.begin_ns)},
      {"dur", microseconds(span.end_ns - span.begin_ns)}};
  if (span.kind == Span::Kind::work) {
    const auto duration = static_cast<double>(std::max<int64_t>(1, span.end_ns - span.begin_ns));
    event["args"] = {{"bytes", span.work.bytes}, {"GB/s", span.work.bytes / duration}};
    if (span.work.flops > 0) {
      event["args"]["FLOPs"] = span.work.flops;
      event["args"]["GFLOP/s"] = span.work.flops / duration;
    }
  }
  return event.dump();
}

}  // namespace

std::string trace_events(const std::vector<Track>& tracks, int worker, const std::string& host) {
  const auto named = [&](const char* what, size_t track, const std::string& name) {
    return nlohmann::ordered_json{
        {"ph", "M"}, {"pid", worker}, {"tid", track}, {"name", what}, {"args", {{"name", name}}}}
        .dump();
  };
  std::string text = named("process_name", 0, fmt::format("worker {} on {}", worker, host));
  for (size_t i = 0; i < tracks.size(); i++) {
    text += ",\n" + named("thread_name", i, tracks[i].name);
    for (const Span& span : tracks[i].spans) text += ",\n" + event_text(span, worker, i);
  }
  return text;
}

}  // namespace lockstep
