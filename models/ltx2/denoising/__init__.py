"""LTX-2's denoising, over any callable that predicts velocities: schedules, guidance, samplers.

schedule      sigmas of a run, from pure noise (1) to none (0)
coefficients  what a step of res_2s multiplies with
guidance      which predictions a step asks for, and how they are weighed
noise         what is drawn, from which generator, in which order
predict       the model's predictions of one step, guided into one for each stream
samplers      the steps: Euler's, and those of res_2s
recipes       the released pipelines: stages, schedules, guidance
stages        one stage, or two with the upsampler between

Nothing here waits for the device inside a step. The first three import no torch.
"""
