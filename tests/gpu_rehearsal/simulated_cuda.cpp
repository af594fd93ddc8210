// A simulated CUDA device for CPU builds of torch: tensors report cuda:N, and every operator runs its CPU kernel.
//
// Three registrations make torch accept the device: a device guard, CUDA hooks, and an allocator. A boxed fallback for
// the CUDA dispatch key replaces CUDA tensors by CPU tensors over the same memory, calls the CPU kernel, and gives the
// results the device. As on a GPU, an operator with tensors on different devices is refused.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::IValue;

thread_local DeviceIndex current = 0;

DeviceIndex devices = 1;

Device with_index(Device device) { return device.has_index() ? device : Device(DeviceType::CUDA, current); }

// Memory that another owner keeps alive, under the name of `device`.
template <typename Owner>
c10::DataPtr memory_of(Owner owner, void* data, Device device) {
  return {data, new Owner(std::move(owner)), [](void* context) { delete static_cast<Owner*>(context); }, device};
}

struct CudaAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto memory = c10::GetCPUAllocator()->allocate(bytes);
    void* data = memory.get();
    return memory_of(std::move(memory), data, Device(DeviceType::CUDA, current));
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

CudaAllocator cuda_allocator;

struct CudaGuard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device getDevice() const override { return {DeviceType::CUDA, current}; }
  void setDevice(Device device) const override { current = with_index(device).index(); }
  void uncheckedSetDevice(Device device) const noexcept override { current = with_index(device).index(); }
  Device exchangeDevice(Device device) const override {
    const auto previous = getDevice();
    setDevice(device);
    return previous;
  }
  DeviceIndex deviceCount() const noexcept override { return devices; }
  c10::Stream getStream(Device device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, with_index(device));
  }
  c10::Stream getDefaultStream(Device device) const override { return getStream(device); }
  c10::Stream getNewStream(Device device, int) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  void record(void**, const c10::Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
};

c10::impl::DeviceGuardImplRegistrar guard(DeviceType::CUDA, new CudaGuard());

// torch looks the hooks up by this class name.
struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return devices; }
  DeviceIndex deviceCount() const override { return devices; }
  DeviceIndex current_device() const override { return current; }
  DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(DeviceIndex device) const override { current = device; }
  void deviceSynchronize(DeviceIndex) const override {}
  bool isPinnedPtr(const void*) const override { return false; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  c10::Allocator* getCUDADeviceAllocator() const override { return &cuda_allocator; }
  Device getDeviceFromPtr(void*) const override { return {DeviceType::CUDA, current}; }
  // The CPU's generator, so that a run draws the same numbers as on the CPU.
  const at::Generator& getDefaultGenerator(DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Generator getNewGenerator(DeviceIndex) const override { return at::detail::createCPUGenerator(); }
};

}  // namespace

namespace at {
REGISTER_CUDA_HOOKS(CUDAHooks);
}

namespace {

at::Tensor tensor_over(const c10::Storage& storage, const at::Tensor& like, c10::DispatchKey key) {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), c10::DispatchKeySet(key), like.dtype());
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  if (like.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  return tensor;
}

c10::Storage storage_over(c10::DataPtr memory, size_t bytes, c10::Allocator* allocator) {
  return {c10::Storage::use_byte_size_t(), bytes, std::move(memory), allocator, /*resizable=*/true};
}

// The tensors and storages of one call of an operator, each with its counterpart on the other device.
class Exchange {
 public:
  c10::Storage to_cpu(const c10::Storage& cuda) {
    auto* impl = cuda.unsafeGetStorageImpl();
    if (auto known = cpu_of_.find(impl); known != cpu_of_.end()) return known->second;
    auto memory = c10::DataPtr(impl->mutable_data(), Device(DeviceType::CPU));
    auto cpu = storage_over(std::move(memory), cuda.nbytes(), c10::GetCPUAllocator());
    cpu_of_.emplace(impl, cpu);
    cuda_of_.emplace(cpu.unsafeGetStorageImpl(), cuda);
    return cpu;
  }

  at::Tensor to_cpu(const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cuda()) return tensor;
    for (const auto& [cuda, cpu] : tensors_)
      if (cuda.is_same(tensor)) return cpu;
    tensors_.emplace_back(tensor, tensor_over(to_cpu(tensor.storage()), tensor, c10::DispatchKey::CPU));
    return tensors_.back().second;
  }

  c10::Storage to_cuda(const c10::Storage& cpu, Device device) {
    auto* impl = cpu.unsafeGetStorageImpl();
    if (auto known = cuda_of_.find(impl); known != cuda_of_.end()) return known->second;
    auto cuda = storage_over(memory_of(cpu, impl->mutable_data(), device), cpu.nbytes(), &cuda_allocator);
    cuda_of_.emplace(impl, cuda);
    return cuda;
  }

  at::Tensor to_cuda(const at::Tensor& tensor, Device device) {
    if (!tensor.defined() || !tensor.is_cpu()) return tensor;
    for (const auto& [cuda, cpu] : tensors_)
      if (cpu.is_same(tensor)) return cuda;
    return tensor_over(to_cuda(tensor.storage(), device), tensor, c10::DispatchKey::CUDA);
  }

  // Repeat on the CUDA tensors what the operator did to the memory and the shapes of its arguments.
  void write_back(Device device) {
    for (auto& [cuda, cpu] : cpu_of_) {
      if (cpu.mutable_data() != cuda->mutable_data())
        cuda->set_data_ptr_noswap(memory_of(cpu, cpu.mutable_data(), cuda->device()));
      cuda->set_nbytes(cpu.nbytes());
    }
    for (auto& [cuda, cpu] : tensors_) {
      auto* impl = cuda.unsafeGetTensorImpl();
      auto expected = cpu_of_.find(impl->storage().unsafeGetStorageImpl());
      if (expected == cpu_of_.end() || !expected->second.is_alias_of(cpu.storage()))
        impl->set_storage_keep_dtype(to_cuda(cpu.storage(), device));
      if (cuda.sizes() != cpu.sizes() || cuda.strides() != cpu.strides() ||
          cuda.storage_offset() != cpu.storage_offset())
        impl->set_sizes_and_strides(cpu.sizes(), cpu.strides(), cpu.storage_offset());
    }
  }

 private:
  std::unordered_map<c10::StorageImpl*, c10::Storage> cpu_of_;
  std::unordered_map<c10::StorageImpl*, c10::Storage> cuda_of_;
  std::vector<std::pair<at::Tensor, at::Tensor>> tensors_;  // on CUDA, on the CPU
};

bool may_mix_devices(const std::string& name, const std::string& argument) {
  static const std::unordered_set<std::string> copies = {
      "aten::copy_", "aten::_to_copy",     "aten::_copy_from",    "aten::_copy_from_and_resize",
      "aten::set_",  "aten::lift_fresh", "aten::record_stream"};
  return copies.count(name) || (argument == "indices" && name.find("index") != std::string::npos);
}

bool holds_tensors(const IValue& value) {
  if (!value.isList()) return false;
  for (const IValue& element : value.toListRef())
    if (element.isTensor()) return true;
  return false;
}

// The device of the operator's CUDA tensors. Raises torch's error if a tensor with dimensions is elsewhere.
std::optional<Device> common_device(const c10::FunctionSchema& schema, c10::ArrayRef<IValue> values) {
  std::optional<Device> common;
  std::string other;
  auto visit = [&](const IValue& value, const std::string& argument) {
    if (!value.isTensor() || !value.toTensor().defined()) return;
    const auto& tensor = value.toTensor();
    const bool free = tensor.dim() == 0 || may_mix_devices(schema.name(), argument);
    if (tensor.is_cuda() && !common) common = tensor.device();
    else if (!free && !(common && *common == tensor.device())) other = tensor.device().str() + " (" + argument + ")";
  };
  // CUDA tensors first: a CPU tensor before them is as wrong as one after them.
  for (bool cuda : {true, false})
    for (size_t i = 0; i < values.size(); i++) {
      const auto& name = schema.arguments()[i].name();
      auto visit_if = [&](const IValue& value) {
        if (value.isTensor() && value.toTensor().defined() && value.toTensor().is_cuda() == cuda) visit(value, name);
      };
      if (values[i].isTensor()) visit_if(values[i]);
      else if (holds_tensors(values[i]))
        for (const IValue& element : values[i].toListRef()) visit_if(element);
    }
  TORCH_CHECK(!common || other.empty(), "Expected all tensors to be on the same device, but found at least two devices, ",
              common ? common->str() : "", " and ", other, "! (in ", schema.name(), ")");
  return common;
}

IValue list_on_cpu(const IValue& value, Exchange& exchange) {
  if (value.isTensorList()) {
    c10::List<at::Tensor> tensors;
    for (const at::Tensor& tensor : value.toTensorVector()) tensors.push_back(exchange.to_cpu(tensor));
    return tensors;
  }
  c10::List<std::optional<at::Tensor>> tensors;
  for (const IValue& element : value.toListRef())
    tensors.push_back(element.isNone() ? std::nullopt : std::optional(exchange.to_cpu(element.toTensor())));
  return tensors;
}

void run_on_cpu(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto first = stack->size() - schema.arguments().size();
  if (schema.name() == "aten::_fused_sdp_choice") {  // the "math" backend, of plain operators
    torch::jit::drop(*stack, schema.arguments().size());
    stack->emplace_back(static_cast<int64_t>(0));
    return;
  }
  const auto common = common_device(schema, c10::ArrayRef<IValue>(*stack).slice(first));
  auto device = common.value_or(Device(DeviceType::CUDA, current));
  Exchange exchange;
  for (size_t i = first; i < stack->size(); i++) {
    auto& value = (*stack)[i];
    if (value.isTensor()) value = exchange.to_cpu(value.toTensor());
    else if (value.isTensorList() || holds_tensors(value)) value = list_on_cpu(value, exchange);
    else if (value.isStorage() && value.toStorage().device().is_cuda()) value = exchange.to_cpu(value.toStorage());
    else if (value.isDevice()) {
      device = value.toDevice();
      if (device.is_cuda()) value = Device(DeviceType::CPU);
    } else if (value.isBool() && schema.arguments()[i - first].name() == "pin_memory") value = false;
  }
  const bool returns_cuda = device.is_cuda();
  device = returns_cuda ? with_index(device) : Device(DeviceType::CUDA, current);
  TORCH_CHECK(device.index() < devices, "CUDA error: invalid device ordinal");
  op.callBoxed(stack);
  exchange.write_back(device);
  if (!returns_cuda) return;
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); i++) {
    auto& value = (*stack)[i];
    if (value.isTensor()) value = exchange.to_cuda(value.toTensor(), device);
    else if (value.isTensorList()) {
      c10::List<at::Tensor> tensors;
      for (const at::Tensor& tensor : value.toTensorVector()) tensors.push_back(exchange.to_cuda(tensor, device));
      value = tensors;
    }
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

extern "C" void simulate_devices(int count) { devices = static_cast<DeviceIndex>(count); }

// Route a namespace's composite operators to the fallback, too: inside, they look for a kernel of the device.
extern "C" void simulate_namespace(const char* space) {
  static std::vector<std::unique_ptr<torch::Library>> libraries;
  libraries.push_back(std::make_unique<torch::Library>(
      torch::Library::IMPL, space, c10::DispatchKey::CUDA, __FILE__, __LINE__));
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    const auto op = name.getNamespace() == space ? dispatcher.findSchema(name) : std::nullopt;
    if (op && op->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd) &&
        !op->hasKernelForDispatchKey(c10::DispatchKey::CUDA))
      libraries.back()->impl(toString(name).substr(std::string(space).size() + 2).c_str(),
                             torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
  }
}

__attribute__((constructor)) static void begin() {
  simulate_namespace("aten");
  c10::SetAllocator(DeviceType::CUDA, &cuda_allocator);
}
