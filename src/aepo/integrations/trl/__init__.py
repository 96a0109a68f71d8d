"""This package adds entropy control to TRL's `GRPOTrainer` (docs/engines/trl.md).

from aepo.integrations.trl import AEPOTrainer, EntropyControlConfig

args = EntropyControlConfig(output_dir="run", method="aepo", target="0.6x")
AEPOTrainer(model="Qwen/Qwen3-0.6B", reward_funcs=reward, args=args, train_dataset=dataset).train()
"""

from aepo.integrations.doctor import DoctorCallback
from aepo.integrations.trl.config import EntropyControlConfig
from aepo.integrations.trl.trainer import AEPOTrainer, EntropyControlTrainer

__all__ = ["AEPOTrainer", "DoctorCallback", "EntropyControlConfig", "EntropyControlTrainer"]
