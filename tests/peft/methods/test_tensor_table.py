"""Tables of values by tensor object."""

import copy
import gc
import pickle
import threading

import torch
from torch import Tensor

from vispeft.peft.methods.tensor_table import TensorTable


def test_tensor_table__finds_values_by_object_and_not_by_content() -> None:
    table: TensorTable[str] = TensorTable()
    one, two = torch.ones(3), torch.ones(3)
    table[one] = "one"
    assert (table.get(one), table.get(two), table.get(one.view_as(one))) == ("one", None, None)


def test_tensor_table__ends_an_entry_with_its_tensor() -> None:
    table: TensorTable[Tensor] = TensorTable()
    x = torch.ones(3, requires_grad=True)
    y = x.exp()
    table[y] = x.detach()
    loss = y.sum()
    assert len(table) == 1
    # autograd keeps the output of exp
    del y
    gc.collect()
    loss.backward()
    del loss
    gc.collect()
    assert len(table) == 0


def test_pop__ends_an_entry() -> None:
    table: TensorTable[int] = TensorTable()
    x = torch.ones(3)
    table[x] = 1
    assert (table.pop(x), table.pop(x), len(table)) == (1, None, 0)


def test_tensor_table__is_copied_and_pickled_without_entries() -> None:
    table: TensorTable[int] = TensorTable()
    x = torch.ones(3)
    table[x] = 1
    for twin in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert (len(twin), len(table)) == (0, 1)


def test_tensor_table__is_shared_by_threads() -> None:
    table: TensorTable[int] = TensorTable()
    wrong: list[int] = []

    def work(first: int) -> None:
        for number in range(first, first + 500):
            x = torch.empty(1)
            table[x] = number
            if table.get(x) != number:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(1000 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (wrong, len(table)) == ([], 0)
