#include <algorithm>
#include <nlohmann/json.hpp>

#include "checkpoints/checkpoint.h"
#include "core/thread_pool.h"
#include "kernels/machine.h"
#include "kernels/matmul.h"
#include "launch/allocation.h"
#include "launch/command.h"
#include "launch/findings.h"
#include "launch/gpu_links.h"
#include "launch/gpus.h"
#include "launch/machine.h"
#include "launch/measure.h"
#include "launch/text.h"
#include "launch/worker_gpus.h"
#include "model/config.h"

namespace lockstep::launch {
namespace {

using nlohmann::json;

// What one worker knows and measures. All workers measure at the same time, as they will train.
json examine(MpiSession& session, const Job& job) {
  const Machine machine = this_machine();
  const int threads = share_of_cores(machine, session).threads;
  set_num_threads(threads);
  json worker = {
      {"rank", session.rank()},
      {"host", session.host()},
      {"version", LOCKSTEP_VERSION},
      {"build", build_id()},
      {"processor", machine.processor},
      {"instruction_set", machine.instruction_set},
      {"cores", machine.cores},
      {"cores_of_host", machine.cores_of_host},
      {"quota", machine.quota},
      {"threads", threads},
      {"memory_bytes", machine.memory_bytes},
      {"memory_free_bytes", machine.memory_free_bytes},
      {"shared_memory_bytes", space_bytes("/dev/shm")},
      {"load", load_average()},
      {"gpu", has_nvidia_gpu()},
      {"mpi", MpiSession::library_version()},
      {"hdf5", hdf5_version()},
      {"product_library", kernels::product_library()},
      {"fast_bf16", kernels::cpu::has_fast_product(DType::bf16)},
  };
  session.world().barrier();
  worker["fp32_flops"] = kernels::measured_product_rate(DType::fp32);
  session.world().barrier();
  worker["bf16_flops"] = kernels::measured_product_rate(DType::bf16);
  session.world().barrier();
  worker["memory_bytes_per_second"] = kernels::measured_memory_rate();
  worker["cuda"] = examine_gpus(session);
  const bool has_gpu = worker["cuda"]["gpu"].get<int>() >= 0;
  worker["traits"] = to_json(traits(has_gpu ? Device::cuda : Device::cpu));
  if (session.size() > 1) {
    worker["all_reduce_bytes_per_second"] = all_reduce_rate(session.world());
  }
  examine_allocation(worker, session, job);
  return worker;
}

struct Totals {
  double fp32_flops = 0, bf16_flops = 0, memory_rate = 0;
  double gpu_fp32_flops = 0, gpu_bf16_flops = 0;  // of the workers that have a GPU
};

Totals totals(const json& workers) {
  Totals sum;
  for (const json& worker : workers) {
    sum.fp32_flops += worker["fp32_flops"].get<double>();
    sum.bf16_flops += worker["bf16_flops"].get<double>();
    sum.memory_rate += worker["memory_bytes_per_second"].get<double>();
    sum.gpu_fp32_flops += worker["cuda"].value("fp32_flops", 0.0);
    sum.gpu_bf16_flops += worker["cuda"].value("bf16_flops", 0.0);
  }
  return sum;
}

// Where and in what precision the workers would train by themselves, and what that gives.
struct Outlook {
  bool cuda = false, bf16 = false;
  double flops = 0;  // matrix products of all workers together
};

Outlook outlook(const json& workers) {
  const Totals sum = totals(workers);
  if (all_have_gpus(workers)) return {true, true, sum.gpu_bf16_flops};
  const bool bf16 = workers[0]["fast_bf16"].get<bool>();
  return {false, bf16, bf16 ? sum.bf16_flops : sum.fp32_flops};
}

// What a training step keeps of the rate of its matrix products on a CPU, as measured on GPT-2
// 124M: the rest goes to attention, normalisation and the optimizer. On GPUs there is no such
// measurement, so all of it: a bound that no step exceeds.
constexpr double kShareOfProducts = 0.5;

double expected_tokens_per_second(const std::string& preset_name, const Outlook& there) {
  ModelConfig model = preset(preset_name);
  model.vocab_size = 50257;
  return (there.cuda ? 1 : kShareOfProducts) * there.flops / training_flops_per_token(model);
}

json summary(const json& workers, const json& gpu_links, const std::vector<Finding>& findings) {
  const Totals sum = totals(workers);
  json problems = json::array();
  for (const Finding& finding : findings) {
    problems.push_back(
        {{"prevents_training", finding.fatal}, {"what", finding.what}, {"mend", finding.mend}});
  }
  const Outlook there = outlook(workers);
  json report = {{"workers", workers},
                 {"fp32_flops", sum.fp32_flops},
                 {"bf16_flops", sum.bf16_flops},
                 {"memory_bytes_per_second", sum.memory_rate},
                 {"device", there.cuda ? "cuda" : "cpu"},
                 {"precision", there.bf16 ? "bf16" : "fp32"},
                 {"gpt2_124m_tokens_per_second", expected_tokens_per_second("gpt2-124m", there)},
                 {"cuda", kCudaIsBuilt},
                 {"problems", problems}};
  if (sum.gpu_bf16_flops > 0) {
    report["gpu_fp32_flops"] = sum.gpu_fp32_flops;
    report["gpu_bf16_flops"] = sum.gpu_bf16_flops;
  }
  if (!gpu_links.is_null()) report["gpu_links"] = gpu_links;
  return report;
}

void line(const char* name, const std::string& text) { fmt::print("{:<16}{}\n", name, text); }

void print_hosts(const json& workers) {
  std::vector<std::string> seen;
  for (const json& worker : workers) {
    const std::string host = worker["host"];
    if (std::find(seen.begin(), seen.end(), host) != seen.end()) continue;
    seen.push_back(host);
    std::vector<json> here;
    for (const json& other : workers) {
      if (other["host"] == host) here.push_back(other);
    }
    const size_t count = here.size();
    fmt::print("{}\n", host);
    line("  processor", fmt::format("{}, {}", worker["processor"].get<std::string>(),
                                    worker["instruction_set"].get<std::string>()));
    const auto cores = worker["cores_of_host"].get<int>();
    line("  cores", fmt::format("{}{}", cores,
                                worker["quota"].get<double>() > 0
                                    ? fmt::format(", of which the container may use {:.1f}",
                                                  worker["quota"].get<double>())
                                    : ""));
    line("  memory", fmt::format("{}, {} available", size_text(worker["memory_bytes"]),
                                 size_text(worker["memory_free_bytes"])));
    const int threads = worker["threads"];
    line("  workers", fmt::format("{}, {} thread{}{}", count, threads, threads == 1 ? "" : "s",
                                  count > 1 ? " each" : ""));
    if (workers.size() > count) line("  network", interfaces_text(worker));
    print_gpus(here);
  }
}

void print_libraries(const json& worker) {
  fmt::print("libraries\n");
  line("  lockstep", fmt::format("{}, build {}", worker["version"].get<std::string>(),
                                 worker["build"].get<std::string>()));
  line("  MPI", worker["mpi"]);
  line("  products", worker["product_library"]);
  line("  HDF5", worker["hdf5"]);
  const json& cuda = worker["cuda"];
  if (!cuda["built"].get<bool>()) return;
  const auto versions = [](const std::string& loaded, const std::string& built) {
    return loaded == built ? loaded : fmt::format("{} (built with {})", loaded, built);
  };
  line("  CUDA runtime",
       versions(cuda_version_text(cuda["runtime"]), cuda_version_text(cuda["runtime_built"])));
  line("  cuBLASLt", versions(cuda["cublaslt"]["loaded"], cuda["cublaslt"]["built"]));
  const std::string cudnn = cuda["cudnn"]["version"], obstacle = cuda["cudnn"]["obstacle"];
  line("  cuDNN", obstacle.empty() ? cudnn : obstacle);
  const std::string no_nccl = cuda["nccl"]["obstacle"];
  line("  NCCL",
       no_nccl.empty() ? versions(cuda["nccl"]["loaded"], cuda["nccl"]["built"]) : no_nccl);
}

void print_rates(const json& workers) {
  const Totals sum = totals(workers);
  const json& first = workers[0];
  const size_t count = workers.size();
  fmt::print("measured{}\n", count > 1 ? fmt::format(", {} workers together", count) : "");
  line("  fp32 product", fmt::format("{:.0f} GFLOP/s", sum.fp32_flops / 1e9));
  line("  bf16 product",
       fmt::format("{:.0f} GFLOP/s{}", sum.bf16_flops / 1e9,
                   first["fast_bf16"].get<bool>()
                       ? ""
                       : " (no fast instruction here: bf16 is rounded, and multiplied as fp32)"));
  line("  memory", fmt::format("{:.1f} GB/s read", sum.memory_rate / 1e9));
  if (sum.gpu_bf16_flops > 0) {
    // An emulated device reaches thousandths of a TFLOP/s.
    line("  GPU products", fmt::format("fp32 {:.4g}, bf16 {:.4g} TFLOP/s",
                                       sum.gpu_fp32_flops / 1e12, sum.gpu_bf16_flops / 1e12));
  }
  if (count > 1) {
    line("  all-reduce", fmt::format("{:.2f} GB/s of gradients, 32 MiB at a time",
                                     first["all_reduce_bytes_per_second"].get<double>() / 1e9));
  }
  if (first.contains("disk_bytes_per_second")) {
    line("  disk",
         fmt::format("{:.2f} GB/s written and flushed, {} free in {}",
                     first["disk_bytes_per_second"].get<double>() / 1e9,
                     size_text(first["disk_free_bytes"]), first["disk_folder"].get<std::string>()));
  }
}

void print_meaning(const json& workers) {
  const Outlook there = outlook(workers);
  fmt::print("what that means\n");
  line("  device", fmt::format("--device auto trains on {} here", there.cuda ? "GPUs" : "CPUs"));
  line("  precision",
       fmt::format("--precision auto trains in {} here", there.bf16 ? "bf16" : "fp32"));
  for (const char* name : {"gpt2-124m", "llama-1b"}) {
    const double rate = expected_tokens_per_second(name, there);
    line(fmt::format("  {}", name).c_str(),
         fmt::format("{} {:.{}f} tokens/s, {:.{}f} million a day", there.cuda ? "at most" : "about",
                     rate, rate < 10 ? 1 : 0, rate * 86400 / 1e6, rate < 10 ? 2 : 1));
  }
}

void print_findings(const std::vector<Finding>& findings) {
  if (findings.empty()) {
    fmt::print("nothing to mend\n");
    return;
  }
  fmt::print("to mend\n");
  for (const Finding& finding : findings) {
    fmt::print("  {} {}\n", finding.fatal ? "!" : "-", finding.what);
    if (!finding.mend.empty()) fmt::print("      {}\n", finding.mend);
  }
}

}  // namespace

ExitCode run_doctor(const Arguments& arguments, MpiSession* session) {
  bool as_json = false;
  Job job;
  OptionTable table(
      "lockstep doctor", "[OPTION]...",
      "Tells what this machine has and measures what it achieves, what that means "
      "for training, and what\nis wrong with the command that mends it. Under mpirun, "
      "for all workers together. Exit code 4 when\nsomething will not work.");
  table.group("Job");
  table.add("data", path(job.data, "DATASET"),
            "also whether all hosts have this dataset, and the same");
  table.add(
      "run", path(job.run, "DIR"),
      "also whether all hosts share this run folder's place; its disk is measured, instead of "
      "that of the folder where doctor was started");
  table.group("Output");
  table.add("json", flag(as_json), "one JSON object instead of text");
  if (wants_help(arguments)) return show_help(table, session);
  table.parse(arguments);

  const json mine = examine(*session, job);
  const json gpu_links = examine_gpu_links(mine["cuda"], *session);
  const auto all = session->world().gather(mine.dump());
  double fatal = 0;
  if (session->rank() == 0) {
    json workers = json::array();
    for (const auto& text : all) workers.push_back(json::parse(text));
    std::vector<Finding> findings = find_problems(workers);
    find_in_gpu_links(gpu_links, findings);
    for (const Finding& finding : findings) fatal = finding.fatal ? 1 : fatal;
    const json report = summary(workers, gpu_links, findings);
    if (as_json) {
      fmt::print("{}\n", report.dump());
    } else {
      print_hosts(workers);
      print_libraries(workers[0]);
      print_rates(workers);
      fmt::print("{}{}", links_text(workers), gpu_links_text(gpu_links));
      print_meaning(workers);
      print_findings(findings);
    }
  }
  session->world().all_reduce(&fatal, 1, ReduceOp::max);
  return fatal == 0 ? ExitCode::done : ExitCode::device;
}

}  // namespace lockstep::launch
